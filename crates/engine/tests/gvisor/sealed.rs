//! Executions that share a sealed disk: what snapshots and forks are made of.

use std::time::SystemTime;

use engine::{Engine, ExecutionSpec};
use serde_json::json;

use crate::host::Host;
use crate::survival::{LOOK, SET_UP};

/// Seals the disk of a paused execution and answers the specification of one on top of it.
async fn on_top(host: &Host, paused: &ExecutionSpec, name: &str) -> ExecutionSpec {
    let sealed = host.path(&format!("{name}-sealed"));
    host.engine.share_disk(&paused.disk, &sealed).await.unwrap();
    let disk = host.path(name);
    host.engine
        .create_disk(&disk, paused.limits.disk_bytes)
        .await
        .unwrap();
    let mut all = vec![sealed];
    all.extend(paused.sealed.iter().cloned());
    ExecutionSpec {
        sealed: all,
        disk,
        ..paused.clone()
    }
}

/// Files of every kind that an overlay treats in its own way.
const FILES: &str = r#"
os.makedirs("/srv/tree/deep"); open("/srv/tree/deep/file", "w").write("first")
os.rename("/usr/share/doc", "/usr/share/documents")
os.unlink("/etc/hostname"); os.rmdir("/mnt"); os.mkdir("/mnt"); open("/mnt/new", "w").close()
os.setxattr("/srv/tree", "user.mark", b"set")
written = open("/srv/written", "w+"); written.write("before\n"); written.flush()
"#;

const FILES_LOOK: &str = r#"
written.write("after\n"); written.flush(); written.seek(0)
r = dict(
    file=open("/srv/tree/deep/file").read(), renamed=os.path.isdir("/usr/share/documents"),
    gone=os.path.exists("/usr/share/doc") or os.path.exists("/etc/hostname"),
    mark=os.getxattr("/srv/tree", "user.mark").decode(), mnt=os.listdir("/mnt"),
    written=written.read(), by_path=open("/srv/written").read(),
)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn clones_over_one_sealed_disk_are_whole_and_independent() {
    let host = Host::new();
    let source = host.boot("disk").await;
    host.run(&source.id, SET_UP).await;
    host.run(&source.id, FILES).await;
    let image = host.directory("image");
    host.pause(&source, &image).await;

    let first = on_top(&host, &source, "first").await;
    let second = on_top(&host, &source, "second").await;
    // The source's own name of the disk may go: the clones have theirs.
    host.engine.remove_disk(&source.disk).await.unwrap();
    let first = host.restore(&first, &image).await;
    let second = host.restore(&second, &image).await;
    let files = json!({
        "file": "first", "renamed": true, "gone": false, "mark": "set", "mnt": ["new"],
        "written": "before\nafter\n", "by_path": "before\nafter\n",
    });
    let mut random = Vec::new();
    for clone in [&first, &second] {
        assert_eq!(host.run(&clone.id, FILES_LOOK).await, files);
        let look = host.run(&clone.id, LOOK).await;
        assert_eq!(look["gone"], json!("still here"));
        assert_eq!(look["log"], json!("one\ntwo\n"));
        assert_eq!(look["middle"], json!("456789"));
        assert_eq!(look["shell"], json!("kept\n"));
        random.push(host.run(&clone.id, "r = os.urandom(16).hex()").await);
    }
    assert_ne!(random[0], random[1]);
    // What one writes the other does not see.
    host.run(&first.id, "open('/srv/tree/deep/file', 'w').write('mine')")
        .await;
    let seen = "r = open('/srv/tree/deep/file').read()";
    assert_eq!(host.run(&first.id, seen).await, json!("mine"));
    assert_eq!(host.run(&second.id, seen).await, json!("first"));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_sealed_disks_reads_as_one() {
    let host = Host::new();
    let mut spec = host.boot("disk").await;
    for round in 0..5 {
        let write = format!(
            "open('/srv/{round}', 'w').write('x'); open('/srv/log', 'a').write('{round}'); \
             os.path.exists('/srv/last') and os.unlink('/srv/last'); \
             round == 0 or open('/srv/last', 'w').close()"
        );
        host.run(&spec.id, &format!("round = {round}; {write}"))
            .await;
        let image = host.directory(&format!("image{round}"));
        host.pause(&spec, &image).await;
        let next = on_top(&host, &spec, &format!("disk{round}")).await;
        spec = host.restore(&next, &image).await;
        host.engine.image_released(&spec.id).await.unwrap();
    }
    let look = "r = [sorted(os.listdir('/srv')), open('/srv/log').read()]";
    let expected = json!([["0", "1", "2", "3", "4", "last", "log"], "01234"]);
    assert_eq!(host.run(&spec.id, look).await, expected);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_after_a_power_cut_can_be_sealed_when_it_is_settled() {
    let host = Host::new();
    let mut source = host.boot("disk").await;
    host.run(&source.id, "x = 3; os.makedirs('/srv/tree')")
        .await;
    host.run(&source.id, "open('/srv/tree/file', 'w').write('kept')")
        .await;
    host.engine.freeze(&source.id).await.unwrap();
    let image = host.directory("image");
    host.engine.checkpoint(&source.id, &image).await.unwrap();
    host.engine.sync_disk(&source.id).await.unwrap();
    let frozen_at = SystemTime::now();
    // What a power cut leaves: a disk that nobody unmounted.
    let cut = host.path("cut");
    let copied = host.engine.copy_disk_durably(&source.disk, &cut).await;
    copied.unwrap();
    host.engine.destroy(&source.id).await.unwrap();
    source.disk = cut;

    let unsettled = on_top(&host, &source, "unsettled").await;
    let error = host.try_restore(&unsettled, &image).await.unwrap_err();
    let text = error.source.to_string();
    assert!(text.contains("mount the disk"), "{text}");

    // The second time there is nothing to do.
    for _ in 0..2 {
        host.engine.settle_disk(&source.disk).await.unwrap();
    }
    let changed = host.engine.disk_changed_since(&source.disk, frozen_at);
    assert!(!changed.await.unwrap());
    let settled = on_top(&host, &source, "settled").await;
    let restored = host.restore(&settled, &image).await;
    let look = "r = [x, open('/srv/tree/file').read()]";
    assert_eq!(host.run(&restored.id, look).await, json!([3, "kept"]));
    host.close().await;
}
