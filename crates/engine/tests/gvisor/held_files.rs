//! Files that a guest holds open and whose names are gone: what they are after a restore.

use serde_json::json;

use crate::host::Host;

/// Runs one part of a guest, pauses it, and answers with what another part sees after the restore.
async fn over_a_pause(before: &str, after: &str) -> serde_json::Value {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, before).await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let spec = host.restore(&spec, &image).await;
    let seen = host.run(&spec.id, after).await;
    host.close().await;
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_another_name_stays_that_file() {
    let before = r#"
import fcntl, mmap
os.makedirs("/root/kept/deep"); os.makedirs("/root/removed")
held = open("/root/removed/a", "a+b"); held.write(b"before" + bytes(4090)); held.flush()
fcntl.flock(held, fcntl.LOCK_EX)
mapped = mmap.mmap(held.fileno(), 4096)
os.link("/root/removed/a", "/root/kept/deep/b"); os.unlink("/root/removed/a"); os.rmdir("/root/removed")
"#;
    let after = r#"
mapped[:6] = b"MAPPED"; held.write(b"after"); held.flush()
other = open("/root/kept/deep/b", "rb")
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB); locked = "twice"
except BlockingIOError:
    locked = "once"
content = other.read(); own = os.fstat(held.fileno()); named = os.stat("/root/kept/deep/b")
r = dict(begin=content[:6].decode(), end=content[4096:].decode(), locked=locked,
    same=own.st_ino == named.st_ino, links=[own.st_nlink, named.st_nlink], left=os.listdir("/root/kept/deep"))
"#;
    let expected = json!({
        "begin": "MAPPED", "end": "after", "locked": "once", "same": true, "links": [1, 1], "left": ["b"],
    });
    assert_eq!(over_a_pause(before, after).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_of_the_longest_name_comes_back() {
    let before = r#"
os.mkdir("/root/long"); name = "/root/long/" + "n" * 255
held = open(name, "w+"); held.write("old"); held.flush()
open("/root/new", "w").write("new"); os.rename("/root/new", name)
"#;
    let after = r#"
held.seek(0); r = [held.read(), open(name).read(), len(os.listdir("/root/long"))]
"#;
    assert_eq!(over_a_pause(before, after).await, json!(["old", "new", 1]));
}

/// A guest must not be able to build a tree that fails or stretches each of its pauses.
#[tokio::test(flavor = "multi_thread")]
async fn no_tree_is_too_deep_for_a_pause() {
    let before = r#"
os.mkdir("/root/held"); held = open("/root/held/a", "w+"); held.write("kept"); held.flush()
os.chdir("/root/held"); depth = 0
while depth < 12000:
    os.mkdir("d"); os.chdir("d"); depth += 1
os.link("/root/held/a", "b"); os.unlink("/root/held/a"); os.chdir("/")
"#;
    let after = "held.seek(0); r = [held.read(), depth]";
    assert_eq!(over_a_pause(before, after).await, json!(["kept", 12000]));
}
