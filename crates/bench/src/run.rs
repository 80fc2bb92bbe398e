//! One run against one server.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use e2b_client::{Api, Connections, Problem, Target};

use crate::floor::FloorOptions;
use crate::goals;
use crate::group::{self, GROUPS};
use crate::host::{Machine, PageCache};
use crate::report::{Board, Report, Row};

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub target: Target,
    /// Template of the sandboxes; it must have Python 3, and for file work Git, npm and pip.
    pub template: String,
    /// Values per row.
    pub rounds: usize,
    /// Groups to measure; empty means all.
    pub only: Vec<String>,
    /// MiB of random memory that paused sandboxes hold.
    pub sizes: Vec<u64>,
    /// How many requests at once.
    pub at_once: Vec<usize>,
    /// How many idle sandboxes.
    pub idle: Vec<usize>,
    /// How long idle sandboxes are watched.
    pub idle_time: Duration,
    /// MiB of the file that is transferred.
    pub transfer_mib: usize,
    /// After this the server's pools are full again.
    pub pool_time: Duration,
    /// The server keeps what was paused in memory for this long; zero: it does not. `None`: nobody
    /// knows, so nothing is called a connect from disk.
    pub warm_time: Option<Duration>,
    /// Floors; `None`: the server is elsewhere, or there is no engine to drive.
    pub floor: Option<FloorOptions>,
    /// The server's data directory, when it is on this machine.
    pub data_dir: Option<PathBuf>,
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// What it is at.
    At {
        /// The group.
        group: &'a str,
        /// The step of it.
        step: &'a str,
    },
    /// A row is done.
    Done(&'a Row),
    /// Nothing more comes.
    End,
}

type Listener = Box<dyn Fn(Progress<'_>) + Send + Sync>;

/// Makes sandboxes, measures, removes them.
pub struct Bench {
    pub(crate) api: Api,
    pub(crate) options: Options,
    /// Value of the metadata key [`e2b_client::MARK`] of all sandboxes of this run.
    pub(crate) mark: String,
    listener: Listener,
}

impl Bench {
    /// Checks the options; nothing is sent yet.
    pub fn new(mut options: Options, listener: Listener) -> Result<Self, Problem> {
        for name in &options.only {
            if !GROUPS.contains(&name.as_str()) {
                return Err(Problem::Broken(format!(
                    "there is no group '{name}'; there are {}",
                    GROUPS.join(", ")
                )));
            }
        }
        let lists = [options.at_once.contains(&0), options.idle.contains(&0)];
        if options.rounds == 0 || lists.contains(&true) {
            let text = "rounds and numbers of sandboxes must be at least 1";
            return Err(Problem::Broken(text.to_owned()));
        }
        if options.floor.is_some() && !rustix::process::geteuid().is_root() {
            let text = "only root can drive runsc; leave --runsc away or use sudo";
            return Err(Problem::Broken(text.to_owned()));
        }
        options.sizes.sort_unstable();
        options.at_once.sort_unstable();
        options.idle.sort_unstable();
        Ok(Self {
            api: Api::new(options.target.clone(), Connections::Kept)?,
            mark: format!("bench-{:016x}", rand::random::<u64>()),
            options,
            listener,
        })
    }

    /// Measures everything that was asked for.
    pub async fn run(&self) -> Report {
        let started = Instant::now();
        let started_at = SystemTime::now();
        let mut rows = Vec::new();
        for name in GROUPS {
            let only = &self.options.only;
            if only.is_empty() || only.iter().any(|only| only == name) {
                rows.extend(self.measure(name).await);
            }
        }
        (self.listener)(Progress::End);
        let floor = self.options.floor.as_ref().map(|floor| &floor.scratch);
        let directory = floor.or(self.options.data_dir.as_ref());
        Report {
            server: self.options.target.url.clone(),
            machine: Machine::this(directory.map(PathBuf::as_path)),
            started_at: rfc3339(started_at),
            seconds: started.elapsed().as_secs_f64(),
            rounds: self.options.rounds,
            goals: goals::judge(&rows),
            rows,
        }
    }

    async fn measure(&self, name: &'static str) -> Vec<Row> {
        self.at(name, "starting");
        let mut board = Board::new(name);
        let mut ended = group::run(name, self, &mut board).await;
        let left = self.api.clean_up().await;
        if let (Ok(()), Some(problem)) = (&ended, left.into_iter().next()) {
            ended = Err(Problem::Broken(problem.to_string()));
        }
        if let Err(problem) = ended {
            board.miss_rest(&problem);
        }
        let rows = board.rows();
        for row in &rows {
            (self.listener)(Progress::Done(row));
        }
        rows
    }

    /// Says what is being done.
    pub(crate) fn at(&self, group: &str, step: &str) {
        (self.listener)(Progress::At { group, step });
    }

    /// Whether the server is on this machine, as far as its user says.
    pub(crate) fn is_local(&self) -> bool {
        self.options.floor.is_some() || self.options.data_dir.is_some()
    }

    /// How the page cache can be dropped; `None`: this is not the server's machine, or not root.
    pub(crate) fn page_cache(&self) -> Option<PageCache> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        match (&self.options.data_dir, &self.options.floor) {
            (Some(data), _) => Some(PageCache::DataDirectory(data.clone())),
            (None, Some(_)) => Some(PageCache::Machine),
            (None, None) => None,
        }
    }

    /// Removes what a run left that was broken off. Says what could not be removed.
    pub async fn abandon(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(self.api.find_strays(&self.mark).await.err());
        problems.extend(self.api.clean_up().await);
        problems
    }
}

/// To the second, in UTC.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    let time = time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(0));
    let text = time.ok().and_then(|time| {
        let format = &time::format_description::well_known::Rfc3339;
        time.format(format).ok()
    });
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            target: Target {
                url: "http://localhost:1".to_owned(),
                sandbox_url: None,
                key: "k".to_owned(),
            },
            template: "base".to_owned(),
            rounds: 1,
            only: Vec::new(),
            sizes: vec![0],
            at_once: vec![1],
            idle: vec![1],
            idle_time: Duration::from_secs(1),
            transfer_mib: 1,
            pool_time: Duration::ZERO,
            warm_time: None,
            floor: None,
            data_dir: None,
        }
    }

    #[test]
    fn an_unknown_group_is_refused_with_the_known_ones() {
        let mut options = options();
        options.only = vec!["paws".to_owned()];
        let Err(problem) = Bench::new(options, Box::new(|_| ())) else {
            panic!("accepted");
        };
        let text = problem.to_string();
        assert!(text.contains("'paws'") && text.contains("pause"), "{text}");
    }

    #[tokio::test]
    async fn without_a_server_every_group_has_rows_that_failed_and_say_why() {
        let bench = Bench::new(options(), Box::new(|_| ())).unwrap();
        let report = bench.run().await;
        assert!(!report.is_complete());
        for group in GROUPS {
            let mut rows = report.rows.iter().filter(|row| row.group == *group);
            let failed = rows.any(|row| {
                let why = row.missing.as_deref().unwrap_or_default();
                row.failed && why.contains("onnect")
            });
            assert!(failed, "{group}: {:#?}", report.rows);
        }
    }

    #[test]
    fn times_are_told_in_utc() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!(rfc3339(time), "1970-01-02T00:00:00Z");
    }
}
