//! The guest's `/etc/passwd` and `/etc/group`, read at request time because users come and go.
//!
//! NSS is no option: the agent is a static binary and must not depend on the image's libraries.

use std::collections::HashMap;
use std::{fs, io};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// An account of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

/// Finds an account by name.
pub(crate) fn find(name: &str) -> io::Result<Option<User>> {
    let passwd = read_lossy(PASSWD)?;
    Ok(accounts(&passwd).find(|user| user.name == name))
}

/// The group ids a process of `user` gets: the primary one first, then all memberships.
pub(crate) fn groups_of(user: &User) -> Vec<u32> {
    match read_lossy(GROUP) {
        Ok(group) => memberships(&group, user),
        Err(_) => vec![user.gid],
    }
}

/// The id of a group.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    let text = read_lossy(GROUP).ok()?;
    groups(&text)
        .find(|group| group.name == name)
        .map(|group| group.gid)
}

/// Names of user and group ids, loaded once for a whole listing.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files; one that is missing only means that ids stay numbers.
    pub(crate) fn load() -> Self {
        let mut names = Self::default();
        for user in accounts(&read_lossy(PASSWD).unwrap_or_default()) {
            names.users.entry(user.uid).or_insert(user.name);
        }
        for group in groups(&read_lossy(GROUP).unwrap_or_default()) {
            names
                .groups
                .entry(group.gid)
                .or_insert_with(|| group.name.to_owned());
        }
        names
    }

    /// The user's name, or the decimal id when it has none.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users
            .get(&uid)
            .cloned()
            .unwrap_or_else(|| uid.to_string())
    }

    /// The group's name, or the decimal id when it has none.
    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups
            .get(&gid)
            .cloned()
            .unwrap_or_else(|| gid.to_string())
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn read_lossy(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// Accounts of a passwd file; malformed lines are skipped, as getpwnam does.
fn accounts(passwd: &str) -> impl Iterator<Item = User> + '_ {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        let home = if home.is_empty() { "/" } else { home };
        Some(User {
            name: name.to_owned(),
            uid,
            gid,
            home: home.to_owned(),
        })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

fn memberships(text: &str, user: &User) -> Vec<u32> {
    let mut ids = vec![user.gid];
    for group in groups(text) {
        let member = group
            .members
            .split(',')
            .any(|name| name.trim() == user.name);
        if member && !ids.contains(&group.gid) {
            ids.push(group.gid);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken\nhalf:x:1\n\
                          user:x:1000:1001:Some, One:/home/user:/bin/bash\nbare:x:7:7:::\n";

    fn user(name: &str) -> Option<User> {
        accounts(SAMPLE).find(|user| user.name == name)
    }

    #[test]
    fn accounts_are_read_and_malformed_lines_skipped() {
        let found = user("user").unwrap();
        assert_eq!(
            (found.uid, found.gid, found.home.as_str()),
            (1000, 1001, "/home/user")
        );
        assert_eq!(user("bare").unwrap().home, "/");
        assert_eq!(accounts(SAMPLE).count(), 3);
        assert!(user("nobody").is_none());
    }

    #[test]
    fn the_primary_group_comes_first_and_once() {
        let text = "user:x:1001:user\nsudo:x:27:admin,user\nother:x:5:someuser\nadm:x:4:user";
        assert_eq!(memberships(text, &user("user").unwrap()), [1001, 27, 4]);
    }
}
