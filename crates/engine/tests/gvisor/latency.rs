//! How long the steps take. Prints a table; fails only when something is far out of bounds.

use std::time::{Duration, Instant};

use engine::{Engine, StartFrom};

use crate::host::{Host, MIB};

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_life_are_quick() {
    let host = Host::new();
    let mut rows = Vec::new();
    let mut measure = |name: &'static str, begin: Instant| {
        rows.push((name, begin.elapsed()));
        Instant::now()
    };
    for round in 0..3 {
        let spec = host.spec(&format!("disk{round}"));
        let image = host.directory(&format!("image{round}"));
        let begin = Instant::now();
        host.engine
            .create_disk(&spec.disk, 10 * 1024 * MIB)
            .await
            .unwrap();
        let begin = measure("create_disk", begin);
        host.engine
            .start(&spec, StartFrom::Boot)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        let begin = measure("start (boot)", begin);
        host.answers(&spec.id).await;
        let begin = measure("  until the guest answers", begin);
        host.engine.freeze(&spec.id).await.unwrap();
        let begin = measure("freeze", begin);
        host.engine.checkpoint(&spec.id, &image).await.unwrap();
        let begin = measure("checkpoint", begin);
        host.engine.sync_disk(&spec.id).await.unwrap();
        let begin = measure("sync_disk", begin);
        host.engine.destroy(&spec.id).await.unwrap();
        let begin = measure("destroy", begin);
        let again = host
            .try_restore(&spec, &image)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        let begin = measure("start (image)", begin);
        host.answers(&again.id).await;
        let begin = measure("  until the guest answers", begin);
        host.engine.image_released(&again.id).await.unwrap();
        let begin = measure("image_released", begin);
        host.engine.destroy(&again.id).await.unwrap();
        measure("destroy", begin);
    }
    for (name, duration) in &rows {
        println!("{name:28} {:7.1} ms", duration.as_secs_f64() * 1000.0);
    }
    let slowest = rows.iter().map(|row| row.1).max().unwrap();
    assert!(slowest < Duration::from_secs(10), "a step took {slowest:?}");
    host.close().await;
}
