//! What this process may use of the host.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows as many open files as the host lets us have. Each connection and each sandbox takes some, and
/// the usual soft limit of 1024 is for programs that still use `select`.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?limit, "the number of open files stays limited");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_host_allows() {
        let limit = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(limit.maximum.map_or(1 << 20, |most| most - 1)),
            ..limit
        };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
