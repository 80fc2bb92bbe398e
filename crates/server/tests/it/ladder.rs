//! What becomes of a sandbox whose memory is lost: it comes back from its files, and says so.

use engine::ExitReason;
use engine::fake::{Call, DISK_FILE};
use server::sandbox::{PauseMode, PublicState, ResumeFrom, SandboxId, Sandboxes};

use crate::support::{FULL, MINUTE, Place, create, eventually, state_of};

/// A paused sandbox with one line on its disk and a one in its memory.
async fn paused(place: &Place, sandboxes: &Sandboxes) -> SandboxId {
    let id = create(sandboxes).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&id, FULL).await.unwrap();
    id
}

/// The one file of this name below the sandboxes' directories.
fn file(place: &Place, name: &str) -> std::path::PathBuf {
    let mut pending = place.directories();
    while let Some(path) = pending.pop() {
        if path.file_name().is_some_and(|found| found == name) {
            return path;
        }
        for entry in std::fs::read_dir(&path).into_iter().flatten() {
            pending.push(entry.unwrap().path());
        }
    }
    panic!("there is no {name}");
}

async fn assert_booted(place: &Place, sandboxes: &Sandboxes, id: &SandboxId, why: &str) {
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    let (view, _) = connected.unwrap();
    assert_eq!(view.state, PublicState::Running);
    let lost = view.memory_lost.unwrap();
    assert!(lost.contains(why), "'{lost}' does not say '{why}'");
    assert_eq!(place.host.memory(&place.execution()), Some(0), "booted");
    let disk = std::fs::read_to_string(file(place, DISK_FILE)).unwrap();
    assert_eq!(disk, "1\n", "its files are as they were");
    // The next pause has memory again, and nothing is said any more.
    sandboxes.pause(id, FULL).await.unwrap();
    assert_eq!(sandboxes.get(id).unwrap().pause_mode, Some(PauseMode::Full));
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    assert_eq!(connected.unwrap().0.memory_lost, None);
    sandboxes.kill(id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_damaged_image_is_not_restored_and_the_files_come_back() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let image = file(&place, "checkpoint.img");
    let mut content = std::fs::read(&image).unwrap();
    content[0] ^= 1;
    std::fs::write(&image, content).unwrap();
    assert_booted(&place, &sandboxes, &id, "damaged").await;
}

#[tokio::test]
async fn an_image_of_a_build_that_is_gone_is_not_restored() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let manifest = file(&place, "manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("fake-build", "gone")).unwrap();
    assert_booted(&place, &sandboxes, &id, "not kept on this host").await;
}

#[tokio::test]
async fn an_image_that_is_refused_twice_is_given_up_only_when_the_boot_works() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    // The host is at fault before the image is even looked at, or nothing starts at all: the memory
    // is kept.
    for calls in [
        vec![Call::Start, Call::Start],
        vec![Call::Restore, Call::Restore, Call::Boot, Call::Boot],
    ] {
        for call in calls {
            place.host.fail(call);
        }
        let failed = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
        failed.unwrap_err();
        assert_eq!(place.host.pending_failures(), vec![]);
    }
    for call in [Call::Restore, Call::Restore, Call::Boot, Call::Boot] {
        place.host.fail(call);
    }
    let failed = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    failed.unwrap_err();
    assert_eq!(place.host.pending_failures(), vec![]);
    let view = sandboxes.get(&id).unwrap();
    assert_eq!(view.pause_mode, Some(PauseMode::Full));
    assert_eq!(view.memory_lost, None);
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.pause(&id, FULL).await.unwrap();
    // Only the image is refused.
    place.host.fail(Call::Restore);
    place.host.fail(Call::Restore);
    assert_booted(&place, &sandboxes, &id, "twice").await;
}

#[tokio::test]
async fn an_image_mended_after_a_failed_boot_wrote_is_not_restored() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let image = file(&place, "checkpoint.img");
    let directory = image.parent().unwrap().to_owned();
    let (good, manifest) = (
        std::fs::read(&image).unwrap(),
        std::fs::read(directory.join("manifest.json")).unwrap(),
    );
    std::fs::write(&image, b"bad").unwrap();
    place.host.fail(Call::StartLate);
    place.host.fail(Call::StartLate);
    let failed = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    failed.unwrap_err();
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(&image, good).unwrap();
    std::fs::write(directory.join("manifest.json"), manifest).unwrap();
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.violations(), Vec::<String>::new());
    assert_eq!(place.host.memory(&place.execution()), Some(0), "booted");
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn memory_is_not_put_over_newer_files_because_the_image_cannot_be_read_for_a_moment() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let manifest = file(&place, "manifest.json");
    let aside = place.folder.path().join("aside");
    // The start fails when the guest has written, and its end takes as long as is needed here.
    place.host.fail(Call::StartLate);
    for _ in 0..3 {
        place.host.fail(Call::Destroy);
    }
    let pending = || place.host.pending_failures();
    let break_and_mend = async {
        let written = || !pending().contains(&Call::StartLate);
        eventually("the failure", written).await;
        std::fs::rename(&manifest, &aside).unwrap();
        // It can be opened and not be read.
        std::fs::create_dir(&manifest).unwrap();
        eventually("the end of the start", || pending().is_empty()).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        std::fs::remove_dir(&manifest).unwrap();
        std::fs::rename(&aside, &manifest).unwrap();
    };
    let connecting = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved);
    let (failed, ()) = tokio::join!(connecting, break_and_mend);
    failed.unwrap_err();
    let view = sandboxes.get(&id).unwrap();
    assert_eq!(view.pause_mode, Some(PauseMode::Filesystem));
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.violations(), Vec::<String>::new());
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn where_it_is_not_wanted_the_sandbox_stays_paused_with_what_it_has() {
    let mut place = Place::new();
    place.boot_without_memory = false;
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let image = file(&place, "checkpoint.img");
    let good = std::fs::read(&image).unwrap();
    std::fs::write(&image, b"bad").unwrap();
    let refused = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("damaged") && text.contains("paused"),
        "{text}"
    );
    assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Paused));
    // Mended, it comes back whole.
    std::fs::write(&image, good).unwrap();
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_sandbox_out_of_memory_is_paused_with_its_files_and_says_why() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    place.host.kill(&place.execution(), ExitReason::OutOfMemory);
    eventually("the pause", || {
        state_of(&sandboxes, &id) == Some(PublicState::Paused)
    })
    .await;
    let view = sandboxes.get(&id).unwrap();
    assert_eq!(view.pause_mode, Some(PauseMode::Filesystem));
    assert!(view.memory_lost.unwrap().contains("memory"));
    assert_booted(&place, &sandboxes, &id, "want of memory").await;
}
