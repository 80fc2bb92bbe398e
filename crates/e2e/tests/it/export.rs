//! Sandboxes that move from one server to another as files, by the client verbs of the program.

use std::os::unix::fs::MetadataExt;

use crate::support::Server;

#[test]
fn a_running_sandbox_moves_to_another_data_directory() {
    let from = Server::start("");
    let to = from.beside("");
    let file = to.data_dir().with_file_name("moved.tar.zst");
    let file_name = file.to_str().unwrap();
    let id = from
        .verb(&["sandbox", "create", "--timeout", "600"])
        .unwrap();
    let before = from.run("moved.py", &["fill", &id]);
    let told = from.verb(&["sandbox", "export", &id, "--output", file_name]);
    assert!(told.unwrap().starts_with(&format!("wrote {file_name}")));
    // The source goes on, and does not know of it.
    from.run("moved.py", &["check", &id, &before]);
    assert!(!from.verb(&["snapshot", "list"]).unwrap().contains(&id));

    // What is not whole is refused and leaves nothing.
    let whole = std::fs::read(&file).unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &altered] {
        let bad = file.with_file_name("bad");
        std::fs::write(&bad, bytes).unwrap();
        let refused = to.verb(&["snapshot", "import", bad.to_str().unwrap()]);
        let problem = refused.unwrap_err();
        assert!(
            problem.starts_with("error: the export is damaged"),
            "{problem}"
        );
    }
    to.assert_nothing_left();

    let import = ["snapshot", "import", file_name, "--name", "moved:v1"];
    assert_eq!(to.verb(&import).unwrap(), "imported sandbase/moved:v1");
    // Holes are holes again.
    let blocks: u64 = files(&to.data_dir().join("snapshots"))
        .iter()
        .map(|file| file.blocks() * 512)
        .sum();
    assert!(blocks < 1 << 30, "{} MiB", blocks >> 20);
    // From here on nothing of the source is needed.
    from.verb(&["sandbox", "kill", &id]).unwrap();
    let create = ["sandbox", "create", "moved:v1", "--timeout", "600"];
    for _ in 0..2 {
        let copy = to.verb(&create).unwrap();
        to.run("moved.py", &["check", &copy, &before]);
        to.verb(&["sandbox", "pause", &copy]).unwrap();
        to.verb(&["sandbox", "connect", &copy]).unwrap();
        to.run("moved.py", &["check", &copy, &before]);
        to.verb(&["sandbox", "kill", &copy]).unwrap();
    }
    to.verb(&["snapshot", "delete", "moved"]).unwrap();
    to.assert_nothing_left();
    from.assert_nothing_left();
}

#[test]
fn the_client_verbs_do_what_they_say() {
    let server = Server::start("");
    let verb = |arguments: &[&str]| server.verb(arguments);
    let id = verb(&["sandbox", "create", "--metadata", "job=42", "--env", "A=1"]).unwrap();
    let shown = verb(&["sandbox", "get", &id]).unwrap();
    assert!(
        shown.contains("job=42") && shown.contains("running"),
        "{shown}"
    );
    let snapshot = verb(&["sandbox", "snapshot", &id, "--name", "job:v1"]).unwrap();
    assert_eq!(snapshot, "sandbase/job:v1");
    server.run("moved.py", &["fill", &id]);
    let told = verb(&["sandbox", "rollback", &id, &snapshot]).unwrap();
    assert!(told.starts_with(&id), "{told}");
    server.run("moved.py", &["empty", &id]);
    let forks = verb(&["sandbox", "fork", &id, "--count", "2"]).unwrap();
    let forks: Vec<&str> = forks.lines().collect();
    assert_eq!(forks.len(), 2);
    assert_eq!(verb(&["sandbox", "list"]).unwrap().lines().count(), 4);
    let json = verb(&["sandbox", "list", "--json"]).unwrap();
    assert!(json.starts_with('[') && json.contains(&id), "{json}");

    let again = verb(&["sandbox", "pause", &id]).and_then(|_| verb(&["sandbox", "pause", &id]));
    assert_eq!(
        again.unwrap_err(),
        format!("error: Sandbox \"{id}\" is already paused (409)")
    );
    verb(&["sandbox", "kill", forks[0], forks[1], &id]).unwrap();
    let gone = verb(&["sandbox", "get", &id]).unwrap_err();
    assert!(
        gone.starts_with("error: Sandbox") && gone.ends_with("(404)"),
        "{gone}"
    );
    assert!(verb(&["snapshot", "list"]).unwrap().contains(&snapshot));
    verb(&["snapshot", "delete", "job"]).unwrap();
    assert!(!verb(&["snapshot", "list"]).unwrap().contains(&snapshot));
    let stranger = verb(&["sandbox", "list", "--key", "e2b_0"]).unwrap_err();
    assert!(stranger.contains("(401)"), "{stranger}");
    server.assert_nothing_left();
}

fn files(directory: &std::path::Path) -> Vec<std::fs::Metadata> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.metadata().unwrap()),
        }
    }
    found
}
