//! File work of everyday, beside the same in a chroot on the same disk.

use std::time::Instant;

use e2b_client::{Agent, Problem};

use crate::floor::Chroot;
use crate::guest::{WORK, create, run as run_inside, since};
use crate::report::{Board, Unit};
use crate::run::Bench;

/// Where the work is done, inside and in the chroot.
const DIRECTORY: &str = "/home/user/work";
const PROGRAM: &str = "/home/user/work.py";
const CHROOT: &str = "the same in a chroot: overlay, same root file system, same disk";

/// One kind of work.
struct Work {
    id: &'static str,
    what: &'static str,
    /// Undoes an earlier round; not timed.
    before: &'static str,
    /// In [`DIRECTORY`]; `$WORK` is the program.
    command: &'static str,
}

const WORKS: &[Work] = &[
    Work {
        id: "files-untar",
        what: "tar: unpack 2000 files",
        before: "rm -rf untarred && mkdir untarred",
        command: "tar xf tree.tar -C untarred",
    },
    Work {
        id: "files-git-clone",
        what: "git clone of 2000 files",
        before: "rm -rf cloned",
        command: "git clone -q --no-hardlinks tree cloned",
    },
    Work {
        id: "files-npm-ci",
        what: "npm ci of 120 packages",
        before: "rm -rf project/node_modules",
        command: "cd project && npm ci --offline --no-audit --no-fund --silent",
    },
    Work {
        id: "files-pip-install",
        what: "pip install of pip and setuptools",
        before: "rm -rf installed",
        command: "pip install -q --no-index --no-deps --disable-pip-version-check \
                  --root-user-action=ignore --target installed ./*.whl",
    },
    Work {
        id: "files-sqlite",
        what: "SQLite: 300 rows, each durable",
        before: "true",
        command: "python3 $WORK sqlite .",
    },
];

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    for work in WORKS {
        board.open(work.id, work.what, Unit::Milliseconds, Some(CHROOT));
    }
    let api = &bench.api;
    let (sandbox, _) = create(api, &bench.options.template, &bench.mark).await?;
    Agent::new(api, &sandbox).write(PROGRAM, WORK).await?;
    bench.at("files", "preparing");
    let prepare = |program: &str| format!("python3 {program} prepare {DIRECTORY}");
    run_inside(api, &sandbox, &prepare(PROGRAM)).await?;
    let floor = match &bench.options.floor {
        Some(options) => {
            let user = run_inside(api, &sandbox, "echo $(id -u):$(id -g)").await?;
            let chroot = Chroot::new(options, user)?;
            chroot.run(&prepare(&Chroot::work_program())).await?;
            Some(chroot)
        }
        None => None,
    };
    for round in 1..=bench.options.rounds {
        for work in WORKS {
            let step = format!("{}: round {round} of {}", work.what, bench.options.rounds);
            bench.at("files", &step);
            let inside = |command: &str, program: &str| {
                format!("export WORK={program}; cd {DIRECTORY} && {command}")
            };
            run_inside(api, &sandbox, &inside(work.before, PROGRAM)).await?;
            let begin = Instant::now();
            run_inside(api, &sandbox, &inside(work.command, PROGRAM)).await?;
            board.note(work.id, since(begin));
            if let Some(chroot) = &floor {
                let program = Chroot::work_program();
                chroot.run(&inside(work.before, &program)).await?;
                let begin = Instant::now();
                chroot.run(&inside(work.command, &program)).await?;
                board.note_floor(work.id, since(begin));
            }
        }
    }
    api.kill(&sandbox.id).await
}
