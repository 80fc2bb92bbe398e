//! Checkpoints that fail and images that do not fit.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use engine::{
    BuildId, Engine, EngineError, ExecutionId, ExecutionSpec, ExecutionStatus, StartFrom,
};
use serde_json::json;

use crate::host::{Host, config};

/// A tiny filesystem, gone with this value.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(path: &'a Path) -> Self {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "tiny"])
            .arg(path);
        assert!(mount.status().unwrap().success());
        Self(path)
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_without_space_leaves_the_guest_as_it_was() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, "x = os.urandom(50 << 20); y = hash(x)")
        .await;
    let small = host.directory("small");
    let tiny = Tiny::mount(&small);
    host.engine.freeze(&spec.id).await.unwrap();
    let error = host.engine.checkpoint(&spec.id, &small).await.unwrap_err();
    assert!(matches!(error, EngineError::NoSpace { .. }), "{error}");
    // What was written is given back at once, though the engine may keep the files open.
    let free = rustix::fs::statvfs(&small).unwrap();
    assert_eq!(free.f_bfree, free.f_blocks);
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    drop(tiny);

    let found = host.engine.find().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].status, ExecutionStatus::Frozen);
    host.engine.thaw(&spec.id).await.unwrap();
    assert_eq!(host.run(&spec.id, "r = hash(x) == y").await, json!(true));
    // And the next one works.
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let spec = host.restore(&spec, &image).await;
    assert_eq!(host.run(&spec.id, "r = hash(x) == y").await, json!(true));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freezing_and_thawing_twice_is_fine() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    for _ in 0..2 {
        host.engine.freeze(&spec.id).await.unwrap();
    }
    for _ in 0..2 {
        host.engine.thaw(&spec.id).await.unwrap();
    }
    assert_eq!(host.run(&spec.id, "r = 1").await, json!(1));
    // A frozen guest can be destroyed.
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.destroy(&spec.id).await.unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_build_is_refused_by_name() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;

    let unknown = BuildId("0123456789abcdef0123456789abcdef".to_owned());
    assert!(!host.engine.has_build(&unknown));
    assert!(!host.engine.has_build(&BuildId("../engines".to_owned())));
    let other = ExecutionSpec {
        build: unknown.clone(),
        ..spec.clone()
    };
    let error = host.try_restore(&other, &image).await.unwrap_err();
    assert!(!error.guest_may_have_run);
    assert!(
        error.source.to_string().contains(&unknown.0),
        "{}",
        error.source
    );

    // The image says that another build wrote it.
    let record = image.join("engine.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace(&spec.build.0, &unknown.0)).unwrap();
    let error = host.try_restore(&spec, &image).await.unwrap_err();
    assert!(!error.guest_may_have_run);
    assert!(
        error.source.to_string().contains(&unknown.0),
        "{}",
        error.source
    );
    // Nothing was used up: put right, it restores.
    std::fs::write(&record, text).unwrap();
    host.restore(&spec, &image).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_runsc_strands_no_image() {
    let mut host = Host::new();
    let spec = host.boot("disk").await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;

    // Another build: the same program with something after its end.
    let newer = host.path("runsc");
    std::fs::copy(&config(&host.path("data")).runsc, &newer).unwrap();
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&newer)
        .unwrap();
    file.write_all(b"newer").unwrap();
    drop(file);
    host.config.runsc = newer;
    let host = host.restart();
    assert_ne!(host.engine.build().id, spec.build);
    assert!(host.engine.has_build(&spec.build));
    let again = host.restore(&spec, &image).await;
    assert_eq!(host.engine.build_of(&again.id).unwrap().id, spec.build);
    let fresh = host.boot("fresh").await;
    assert_eq!(
        host.engine.build_of(&fresh.id).unwrap(),
        *host.engine.build()
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_survives_a_change_of_the_configured_init() {
    let mut host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, "x = 5").await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    host.config.init.push("another argument".to_owned());
    let host = host.restart();
    let spec = host.restore(&spec, &image).await;
    assert_eq!(host.run(&spec.id, "r = x").await, json!(5));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_refused_and_leaves_nothing() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let state = image.join("checkpoint.img");
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, &good[..good.len() / 2]).unwrap();
    host.try_restore(&spec, &image).await.unwrap_err();
    assert!(host.engine.find().await.unwrap().is_empty());
    std::fs::write(&state, &good).unwrap();
    host.restore(&spec, &image).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_that_fails_spoils_no_image() {
    let mut host = Host::new();
    let spec = host.boot("disk").await;
    // As the agent does. The image then is over an empty /tmp, where gVisor wants a tmpfs.
    host.run(&spec.id, "os.unlink('/tmp/.sandbase-boot'); x = 7")
        .await;
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.sync_disk(&spec.id).await.unwrap();
    let frozen_at = SystemTime::now();
    let image = host.directory("image");
    host.pause(&spec, &image).await;

    // A runsc that does nothing; one that makes a sandbox, whose PID 1 is not there; both again.
    let broken = BuildId("00000000000000000000000000000000".to_owned());
    let program = host.path("data/engines").join(&broken.0).join("runsc");
    std::fs::create_dir(program.parent().unwrap()).unwrap();
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let init = std::mem::replace(&mut host.config.init, vec!["/no/such/program".to_owned()]);
    let mut host = host.restart();
    for build in [&broken, &spec.build, &broken, &spec.build] {
        let boot = ExecutionSpec {
            id: ExecutionId::random(),
            build: build.clone(),
            ..spec.clone()
        };
        let error = host.engine.start(&boot, StartFrom::Boot).await.unwrap_err();
        assert!(error.guest_may_have_run, "{}", error.source);
        let changed = host.engine.disk_changed_since(&spec.disk, frozen_at).await;
        assert!(!changed.unwrap(), "the disk looks changed");
    }
    host.config.init = init;
    let host = host.restart();
    let restored = host.restore(&spec, &image).await;
    let look = "r = [x, os.listdir('/tmp')]";
    assert_eq!(host.run(&restored.id, look).await, json!([7, []]));
    // What a guest takes from /tmp is still seen.
    host.run(
        &restored.id,
        "open('/tmp/f', 'w').close(); os.unlink('/tmp/f')",
    )
    .await;
    host.engine.destroy(&restored.id).await.unwrap();
    let changed = host.engine.disk_changed_since(&spec.disk, frozen_at).await;
    assert!(changed.unwrap(), "the guest's change is not seen");

    // A boot that works has its /tmp on the disk, also after all that.
    let booted = ExecutionSpec {
        id: ExecutionId::random(),
        ..spec.clone()
    };
    host.engine.start(&booted, StartFrom::Boot).await.unwrap();
    host.answers(&booted.id).await;
    let look = "r = os.stat('/tmp').st_dev == os.stat('/').st_dev";
    assert_eq!(host.run(&booted.id, look).await, json!(true));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_restores_from_the_disk_and_from_the_page_cache() {
    let host = Host::new();
    let mut spec = host.boot("disk").await;
    host.run(&spec.id, "x = os.urandom(64 << 20); import hashlib")
        .await;
    let digest = "r = hashlib.sha256(x).hexdigest()";
    let before = host.run(&spec.id, digest).await;
    for (image, cached) in [("cold", false), ("warm", true)] {
        let image = host.directory(image);
        host.pause(&spec, &image).await;
        let pages = image.join("pages.img");
        let file = std::fs::File::open(&pages).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if cached {
            std::fs::read(&pages).unwrap();
        }
        spec = host.restore(&spec, &image).await;
        assert_eq!(host.run(&spec.id, digest).await, before, "{cached}");
    }
    host.close().await;
}
