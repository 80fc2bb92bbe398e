//! Times the steps of executions on this host: `steps <data dir> <rounds> [at once]`, as root.
//!
//! Prints one JSON object per measured step, `{"step": ..., "ms": ...}`, to compare two builds of the
//! engine in one go: run them in turns and put the lines side by side.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::gvisor::{Config, Gvisor};
use engine::{Engine, ExecutionId, ExecutionSpec, Limits, NetworkPolicy, StartFrom};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const GUEST: &str = include_str!("../tests/gvisor/guest.py");
const MIB: u64 = 1 << 20;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let usage = "steps <data dir> <rounds> [at once]";
    let data: PathBuf = arguments.next().expect(usage).into();
    let rounds: usize = arguments.next().expect(usage).parse().expect(usage);
    let at_once: usize = arguments.next().map_or(0, |n| n.parse().expect(usage));
    std::fs::create_dir_all(&data).expect("a data directory");
    let mut config = Config::new(data.join("engine"), "/usr/local/lib/sandbase/engine/runsc");
    config.init = ["/usr/bin/python3", "-c", GUEST].map(str::to_owned).into();
    if let Some(starts) = std::env::var("STARTS").ok().and_then(|n| n.parse().ok()) {
        config.starts_at_once = starts;
    }
    let bench = Arc::new(Bench {
        engine: Gvisor::open(config).expect("an engine"),
        data,
    });
    let template = bench.spec("template");
    let image = bench.data.join("image");
    let _ = std::fs::remove_dir_all(&image);
    std::fs::create_dir(&image).expect("an image directory");
    let _ = bench.engine.remove_disk(&template.disk).await;
    bench
        .engine
        .create_disk(&template.disk, 1024 * MIB)
        .await
        .expect("a disk");
    bench
        .engine
        .start(&template, StartFrom::Boot)
        .await
        .expect("a boot");
    bench.answers(&template.id).await;
    bench.pause(&template.id, &image).await;

    for round in 0..rounds {
        bench.life(round, &image).await;
    }
    if at_once > 0 {
        let begin = Instant::now();
        let mut starts = tokio::task::JoinSet::new();
        for number in 0..at_once {
            let (bench, image) = (Arc::clone(&bench), image.clone());
            starts.spawn(async move {
                let spec = bench.copied(&format!("many{number}")).await;
                bench
                    .engine
                    .start(&spec, StartFrom::Image(&image))
                    .await
                    .expect("a start");
                bench.answers(&spec.id).await;
                (spec, begin.elapsed())
            });
        }
        let started = starts.join_all().await;
        say("all at once", begin.elapsed());
        for (_, after) in &started {
            say("one of all", *after);
        }
        for (spec, _) in started {
            bench.engine.destroy(&spec.id).await.expect("an end");
            let _ = bench.engine.remove_disk(&spec.disk).await;
        }
    }
    bench.engine.close().await;
}

struct Bench {
    engine: Gvisor,
    data: PathBuf,
}

impl Bench {
    async fn life(&self, round: usize, image: &std::path::Path) {
        let begin = Instant::now();
        let spec = self.copied(&format!("disk{round}")).await;
        let begin = step("copy_disk", begin);
        self.engine
            .start(&spec, StartFrom::Image(image))
            .await
            .expect("a start");
        let begin = step("start", begin);
        self.answers(&spec.id).await;
        let begin = step("answer", begin);
        self.engine.freeze(&spec.id).await.expect("a freeze");
        let begin = step("freeze", begin);
        self.engine.thaw(&spec.id).await.expect("a thaw");
        step("thaw", begin);
        let begin = Instant::now();
        self.answers(&spec.id).await;
        step("answer after thaw", begin);
        let own = self.data.join(format!("image{round}"));
        std::fs::create_dir(&own).expect("an image directory");
        self.pause(&spec.id, &own).await;
        let spec = ExecutionSpec {
            id: ExecutionId::random(),
            ..spec
        };
        let begin = Instant::now();
        self.engine
            .prepare(&spec, &own)
            .await
            .expect("a preparation");
        let begin = step("prepare", begin);
        self.engine
            .start(&spec, StartFrom::Image(&own))
            .await
            .expect("a start");
        let begin = step("start prepared", begin);
        self.answers(&spec.id).await;
        step("answer prepared", begin);
        self.engine.destroy(&spec.id).await.expect("an end");
        let _ = std::fs::remove_dir_all(&own);
        let _ = self.engine.remove_disk(&spec.disk).await;
    }

    async fn pause(&self, id: &ExecutionId, image: &std::path::Path) {
        let whole = Instant::now();
        let begin = Instant::now();
        self.engine.freeze(id).await.expect("a freeze");
        let begin = step("freeze", begin);
        self.engine
            .checkpoint(id, image)
            .await
            .expect("a checkpoint");
        let begin = step("checkpoint", begin);
        self.engine.sync_disk(id).await.expect("a sync");
        let begin = step("sync_disk", begin);
        self.engine.destroy(id).await.expect("an end");
        step("destroy", begin);
        step("pause", whole);
    }

    fn spec(&self, disk: &str) -> ExecutionSpec {
        ExecutionSpec {
            id: ExecutionId::random(),
            build: self.engine.build().id.clone(),
            layers: vec!["/var/cache/sandbase/rootfs".into()],
            sealed: Vec::new(),
            disk: self.data.join(disk),
            hostname: "sandbox".to_owned(),
            limits: Limits {
                cpu_milli: 2000,
                memory_bytes: 512 * MIB,
                disk_bytes: 1024 * MIB,
                pids: 2048,
            },
            network: NetworkPolicy::Internet,
        }
    }

    async fn copied(&self, disk: &str) -> ExecutionSpec {
        let spec = self.spec(disk);
        let _ = self.engine.remove_disk(&spec.disk).await;
        let from = self.data.join("template");
        self.engine
            .copy_disk(&from, &spec.disk)
            .await
            .expect("a copy");
        spec
    }

    async fn answers(&self, id: &ExecutionId) {
        while self.asked(id).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn asked(&self, id: &ExecutionId) -> std::io::Result<()> {
        let mut stream = self.engine.dial(id, 9000).await?;
        stream.write_all(b"\"r = 1\"\n").await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        match answer.as_str() {
            "" => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn step(name: &str, begin: Instant) -> Instant {
    say(name, begin.elapsed());
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the measurements are the output")]
fn say(name: &str, time: Duration) {
    println!(
        "{{\"step\": \"{name}\", \"ms\": {:.1}}}",
        time.as_secs_f64() * 1000.0
    );
}
