//! Starting: what the processes of a start are given.

use engine::Engine;

use crate::host::Host;

#[tokio::test(flavor = "multi_thread")]
async fn the_sentry_has_a_large_descriptor_table_and_no_descriptor_of_ours() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let pid = format!("/run/sandbase/{}/executions/{}/pid", host.tag(), spec.id);
    let pid = std::fs::read_to_string(pid).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("FDSize:"))
        .unwrap();
    assert!(size.trim().parse::<u32>().unwrap() >= 1024, "{size}");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let highest = open
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|number| number.parse::<u32>().unwrap())
        .max();
    assert!(highest < Some(1000), "{highest:?}");
    host.close().await;
}
