//! Manifest files on a real file system.

#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used)]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sluice_kubeapi::manifests::{Batch, ManifestError, ManifestSource, Severity, load_text};
use sluice_model::{Change, Object, ObjectRef};
use tempfile::TempDir;

/// Polls after which a change must have been noticed. Polls that follow at once may meet a file that is
/// too young to be trusted, and are made again.
const DEADLINE: Duration = Duration::from_secs(20);

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn source(paths: &[&Path]) -> ManifestSource {
    ManifestSource::new(paths.iter().map(|path| path.to_path_buf()).collect()).unwrap()
}

/// `+name` and `-name`, sorted.
fn changes(batch: &Batch) -> Vec<String> {
    let name = |reference: ObjectRef| match reference {
        ObjectRef::Service(name) | ObjectRef::EndpointSlice(name) | ObjectRef::Pod(name) => name.name,
        ObjectRef::Node(name) | ObjectRef::ServiceCidr(name) | ObjectRef::Namespace(name) => name,
    };
    let mut changes: Vec<_> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Apply(object) => format!("+{}", name(object.reference())),
            Change::Delete(reference) => format!("-{}", name(reference.clone())),
        })
        .collect();
    changes.sort();
    changes
}

/// Polls until there is news.
fn next(source: &mut ManifestSource) -> Batch {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(batch) = source.poll() {
            return batch;
        }
        assert!(Instant::now() < deadline, "no news");
    }
}

/// Polls often enough that anything that is to be noticed has been.
fn assert_no_news(source: &mut ManifestSource) {
    for _ in 0..10 {
        assert_eq!(source.poll(), None);
    }
}

/// The news has no changes and reports these, in order.
#[track_caller]
fn assert_reports(batch: &Batch, parts: &[&str]) {
    assert_eq!(changes(batch), [""; 0], "{batch:#?}");
    assert_eq!(batch.reports.len(), parts.len(), "{batch:#?}");
    for (report, part) in batch.reports.iter().zip(parts) {
        assert!(report.to_string().contains(part), "{report} has no {part:?}");
    }
}

/// A directory with the Services a and b in two files, loaded.
fn loaded() -> (TempDir, ManifestSource) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), service("a", "10.96.0.1")).unwrap();
    fs::write(dir.path().join("b.yaml"), service("b", "10.96.0.2")).unwrap();
    let mut source = source(&[dir.path()]);
    let batch = source.load();
    assert_eq!((changes(&batch), batch.reports), (vec!["+a".to_owned(), "+b".to_owned()], vec![]));
    assert_no_news(&mut source);
    (dir, source)
}

#[test]
fn paths_must_exist_at_the_start() {
    assert!(matches!(ManifestSource::new(vec![]), Err(ManifestError::NoPath)));
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.yaml");
    let error = ManifestSource::new(vec![dir.path().to_path_buf(), missing.clone()]).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert_eq!(error.matches("No such file").count(), 1, "said once: {error}");
    assert!(
        error.contains(missing.to_str().unwrap()) && error.contains("name a file or directory"),
        "{error}"
    );
}

#[test]
fn a_text_can_be_loaded_by_itself() {
    let batch = load_text(Path::new("x.yaml"), (service("a", "10.96.0.1") + "---\n[\n").as_bytes());
    assert_eq!(changes(&batch), ["+a"]);
    assert!(
        batch.reports[0].to_string().starts_with("x.yaml:7: document 2 (line 7): "),
        "{}",
        batch.reports[0]
    );
}

#[test]
fn files_are_added_changed_and_deleted() {
    let (dir, mut source) = loaded();
    fs::write(dir.path().join("c.json"), r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"}}"#)
        .unwrap();
    assert_eq!(changes(&next(&mut source)), ["+n"]);
    fs::write(dir.path().join("a.yaml"), service("a", "10.96.0.111")).unwrap();
    let batch = next(&mut source);
    assert!(
        matches!(&batch.changes[..], [Change::Apply(Object::Service(a))] if a.cluster_ips[0].to_string() == "10.96.0.111")
    );
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["-b"]);
    fs::write(dir.path().join("b.yaml"), service("b", "10.96.0.2")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["+b"]);
    assert_no_news(&mut source);
}

#[test]
fn a_change_counts_only_when_two_polls_saw_the_same() {
    let (dir, mut source) = loaded();
    let path = dir.path().join("a.yaml");
    for n in 1..6 {
        fs::write(&path, service("a", "10.96.0.9") + &"#".repeat(n)).unwrap();
        assert_eq!(source.poll(), None, "changed since the last poll");
    }
    assert_eq!(changes(&source.poll().unwrap()), ["+a"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(source.poll(), None);
    fs::write(&path, service("a", "10.96.0.9")).unwrap();
    assert_no_news(&mut source);
}

#[test]
fn a_half_written_file_takes_nothing_away() {
    let (dir, mut source) = loaded();
    let path = dir.path().join("b.yaml");
    let text = service("b", "10.96.0.22");
    let mut file = File::create(&path).unwrap();
    assert_reports(&next(&mut source), &["empty", "kept"]);
    file.write_all(&text.as_bytes()[..text.len() / 2]).unwrap();
    assert_reports(&next(&mut source), &["document 1 (line 2): Service default/b: spec.clusterIP: missing"]);
    file.write_all(&text.as_bytes()[text.len() / 2..]).unwrap();
    let batch = next(&mut source);
    assert_eq!((changes(&batch), batch.reports[0].severity), (vec!["+b".to_owned()], Severity::Info));
}

#[test]
fn a_file_may_be_given_itself_with_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("services");
    fs::write(&path, service("a", "10.96.0.1")).unwrap();
    let mut source = source(&[&path, &path]);
    assert_eq!(changes(&source.load()), ["+a"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(changes(&next(&mut source)), ["-a"]);
    assert_no_news(&mut source);
    fs::write(&path, service("a", "10.96.0.1")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["+a"]);
}

#[test]
fn paths_come_first_in_the_order_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let [z, a] = ["z.yaml", "a.yaml"].map(|name| dir.path().join(name));
    fs::write(&z, service("s", "10.96.0.26")).unwrap();
    fs::write(&a, service("s", "10.96.0.1")).unwrap();
    let ip = |batch: &Batch| match &batch.changes[..] {
        [Change::Apply(Object::Service(service))] => service.cluster_ips[0].to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ip(&source(&[&z, dir.path()]).load()), "10.96.0.26");
    assert_eq!(ip(&source(&[dir.path()]).load()), "10.96.0.1");
}

/// A ConfigMap volume: `web.yaml -> ..data/web.yaml`, `..data -> ..1`, and `..data` is replaced.
#[test]
fn a_config_map_volume_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (version, ip) in [("..1", "10.96.0.1"), ("..2", "10.96.0.2")] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("web.yaml"), service("web", ip)).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    let mut source = source(&[root]);
    assert_eq!(changes(&source.load()), ["+web"]);
    symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["+web"]);
    fs::remove_dir_all(root.join("..2")).unwrap();
    assert_reports(&next(&mut source), &["web.yaml: a symlink to nowhere", "kept"]);
    fs::remove_file(root.join("web.yaml")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["-web"]);
}

#[test]
fn what_is_not_a_file_keeps_what_was_there() {
    let (dir, mut source) = loaded();
    let path = dir.path().join("a.yaml");
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_reports(
        &next(&mut source),
        &["a.yaml: not a regular file: pipes and devices are not read", "kept"],
    );
    assert_no_news(&mut source);
}

#[test]
fn a_directory_that_vanishes_keeps_what_was_there() {
    let (dir, mut source) = loaded();
    let aside = tempfile::tempdir().unwrap();
    let moved = aside.path().join("moved");
    fs::rename(dir.path(), &moved).unwrap();
    assert_reports(&next(&mut source), &["all it held stays as it was"]);
    assert_no_news(&mut source);
    fs::rename(&moved, dir.path()).unwrap();
    assert_reports(&next(&mut source), &["good again"]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(changes(&next(&mut source)), ["-a"]);
}

#[test]
fn a_file_without_permission_keeps_what_was_there() {
    let (dir, mut source) = loaded();
    let path = dir.path().join("a.yaml");
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    if File::open(&path).is_ok() {
        // Root reads everything: nothing can be refused, so nothing must change either.
        sluice_sys::skipped("root reads everything: only checked that a change of mode alone is no news");
        assert_no_news(&mut source);
        return;
    }
    assert_reports(&next(&mut source), &["make the file readable", "kept"]);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_reports(&next(&mut source), &["good again"]);
}

#[test]
fn a_file_that_is_too_large_keeps_what_was_there() {
    let (dir, mut source) = loaded();
    let path = dir.path().join("a.yaml");
    File::options().write(true).open(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_reports(&next(&mut source), &["larger than 64 MiB", "kept"]);
    assert_no_news(&mut source);
}

#[test]
fn a_thread_watches_until_it_is_dropped() {
    let (dir, source) = loaded();
    let (send, batches) = mpsc::channel();
    let watch = source
        .watch(Duration::from_millis(1), move |batch| match send.send(batch) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
        .unwrap();
    let new: PathBuf = dir.path().join("c.yaml");
    fs::write(&new, service("c", "10.96.0.3")).unwrap();
    assert_eq!(changes(&batches.recv_timeout(DEADLINE).unwrap()), ["+c"]);
    drop(watch);
    assert!(batches.recv().is_err(), "the thread is gone, and its end of the channel with it");
}
