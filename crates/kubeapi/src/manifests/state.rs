//! The combined state of all files: last good versions, duplicates, reports already made. Pure.
//!
//! Contents of files go in ([`State::update`] and its siblings), changes and reports come out ([`State::take`]).
//! The rules for a file that is read again:
//!
//! * A file is *unsound* while one of its documents cannot be read, while it is empty and was not before, or
//!   while an object has an error that had none when the file was sound. An unsound file removes nothing:
//!   objects missing in it stay. Its good objects count at once.
//! * A sound file removes the objects that it no longer has.
//! * An object with a wrong element never replaces one without. A wrong element that was there from the start,
//!   such as an SCTP port, does not make a file unsound for ever.
//!
//! If several files have the same object, the first file in the order of paths gives it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use sluice_model::{Change, Object, ObjectRef};

use super::Batch;
use super::parse::{Parsed, ParsedObject};
use super::report::{Identity, Report, Severity};
use crate::convert::Skip;

/// The maximum number of reports about one file at a time; a file may have any number of errors.
const MAX_REPORTS: usize = 64;

/// A file. Keys are ordered by precedence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileKey {
    /// The index of the path under which it was found.
    pub(super) root: usize,
    pub(super) path: Arc<Path>,
}

/// All files.
#[derive(Debug, Default)]
pub(super) struct State {
    files: BTreeMap<FileKey, File>,
    /// Which file gives an object, as receivers know it.
    givers: HashMap<ObjectRef, FileKey>,
    /// Objects that a file has added, changed or removed since the last [`State::take`].
    touched: BTreeMap<ObjectRef, BTreeSet<FileKey>>,
    /// Something has changed since then. Polls without changes must cost nothing.
    is_stirred: bool,
}

#[derive(Debug, Default)]
struct File {
    held: BTreeMap<ObjectRef, Held>,
    /// Objects that had an error when the file was sound, or was first read, and still have it.
    tolerated: BTreeSet<ObjectRef>,
    is_read: bool,
    /// The current errors of the file.
    complaints: Vec<Report>,
    /// The errors that have been reported.
    said: HashSet<Identity>,
}

#[derive(Debug)]
struct Held {
    object: Object,
    /// An element of it was left out.
    is_flawed: bool,
}

impl State {
    /// Applies the contents of a file that has been read.
    pub(super) fn update(&mut self, key: &FileKey, parsed: Parsed) {
        self.is_stirred = true;
        let file = self.files.entry(key.clone()).or_default();
        let mut complaints = parsed.broken;
        let mut is_sound = complaints.is_empty();
        if parsed.is_empty && !file.held.is_empty() {
            is_sound = false;
            let what = "empty, and held objects before";
            complaints.push(Report::new(Severity::Error, &key.path, what, "delete the file to remove them"));
        }
        let mut seen: HashMap<ObjectRef, usize> = HashMap::new();
        let mut kept: BTreeSet<ObjectRef> = BTreeSet::new();
        let mut troubled: BTreeSet<ObjectRef> = BTreeSet::new();
        for object in parsed.objects {
            if let Some(document) = seen.get(&object.reference) {
                let what = format!("it is in this file twice; the one in document {document} counts");
                let report = Report::new(Severity::Warning, &key.path, what, "delete one of them");
                troubled.insert(object.reference.clone());
                complaints.push(report.at(object.place).of(Some(object.reference)));
                continue;
            }
            complaints.extend(complaints_of(key, &object));
            let ParsedObject { reference, place, result, problems } = object;
            if !problems.is_empty() {
                troubled.insert(reference.clone());
            }
            let held = file.held.get(&reference);
            match result {
                Err(Skip::NoClusterIp | Skip::Broken) if held.is_some() => {
                    kept.insert(reference.clone());
                }
                Ok(_) if !problems.is_empty() && held.is_some_and(|held| !held.is_flawed) => {
                    kept.insert(reference.clone());
                }
                Ok(object) => {
                    if held.is_none_or(|held| held.object != object) {
                        self.touched.entry(reference.clone()).or_default().insert(key.clone());
                    }
                    let is_flawed = !problems.is_empty();
                    file.held.insert(reference.clone(), Held { object, is_flawed });
                }
                Err(_) => continue,
            }
            seen.insert(reference, place.document);
        }
        if file.is_read {
            is_sound &= kept.is_empty() && troubled.is_subset(&file.tolerated);
            file.tolerated.retain(|reference| troubled.contains(reference));
        } else {
            file.tolerated = troubled;
        }
        file.is_read = true;
        let missing: Vec<ObjectRef> =
            file.held.keys().filter(|held| !seen.contains_key(held)).cloned().collect();
        if is_sound {
            for reference in missing {
                file.held.remove(&reference);
                self.touched.entry(reference).or_default().insert(key.clone());
            }
        } else {
            kept.extend(missing);
            complaints.extend(kept_report(key, &kept));
        }
        file.complaints = complaints;
    }

    /// Notes that a file or directory exists but cannot be read: its objects stay.
    pub(super) fn unreadable(&mut self, key: &FileKey, what: impl Into<String>, mend: &str) {
        self.is_stirred = true;
        let file = self.files.entry(key.clone()).or_default();
        file.complaints = vec![Report::new(Severity::Error, &key.path, what, mend)];
        let held: BTreeSet<ObjectRef> = file.held.keys().cloned().collect();
        file.complaints.extend(kept_report(key, &held));
    }

    /// Notes that a directory can be read, or that a file without objects is in order.
    pub(super) fn readable(&mut self, key: &FileKey) {
        if let Some(file) = self.files.get_mut(key).filter(|file| !file.complaints.is_empty()) {
            self.is_stirred = true;
            file.complaints.clear();
        }
    }

    /// Removes a file that is gone, and its objects.
    pub(super) fn remove(&mut self, key: &FileKey) {
        self.is_stirred = true;
        for reference in self.files.remove(key).into_iter().flat_map(|file| file.held.into_keys()) {
            self.touched.entry(reference).or_default().insert(key.clone());
        }
    }

    /// The changes since the last call. Deletions come first, Services last: a receiver that applies them one by
    /// one never has a Service before its endpoints.
    pub(super) fn take(&mut self) -> Batch {
        if !std::mem::take(&mut self.is_stirred) {
            return Batch::default();
        }
        let mut deleted = Vec::new();
        let mut applied = Vec::new();
        for (reference, touched_by) in std::mem::take(&mut self.touched).into_iter().rev() {
            let giver = self.files.iter().find_map(|(key, file)| Some((key, file.held.get(&reference)?)));
            let before = self.givers.get(&reference);
            match giver {
                Some((key, held)) => {
                    if before != Some(key) || touched_by.contains(key) {
                        applied.push(Change::Apply(held.object.clone()));
                    }
                    self.givers.insert(reference, key.clone());
                }
                None if before.is_some() => {
                    self.givers.remove(&reference);
                    deleted.push(Change::Delete(reference));
                }
                None => {}
            }
        }
        deleted.extend(applied);
        Batch { changes: deleted, reports: self.take_reports() }
    }

    /// Errors that have not been reported yet, and files that are good again.
    fn take_reports(&mut self) -> Vec<Report> {
        let mut reports = Vec::new();
        for (key, file) in &mut self.files {
            let duplicates = file.held.keys().filter_map(|reference| {
                let giver = self.givers.get(reference).filter(|giver| *giver != key)?;
                let what = format!("it is in {}, too, and that one counts", giver.path.display());
                let report = Report::new(Severity::Warning, &key.path, what, "delete one of them");
                Some(report.of(Some(reference.clone())))
            });
            let mut now: Vec<Report> = file.complaints.iter().cloned().chain(duplicates).collect();
            let surplus = now.len().saturating_sub(MAX_REPORTS);
            if surplus > 0 {
                now.truncate(MAX_REPORTS);
                let what = format!("and {surplus} more problems in this file");
                now.push(Report::new(Severity::Warning, &key.path, what, "mend those before"));
            }
            let before = std::mem::replace(&mut file.said, now.iter().map(Report::identity).collect());
            if now.is_empty() && !before.is_empty() {
                reports.push(Report::new(Severity::Info, &key.path, "good again", ""));
            }
            reports.extend(now.into_iter().filter(|report| !before.contains(&report.identity())));
        }
        reports
    }
}

fn complaints_of(key: &FileKey, object: &ParsedObject) -> impl Iterator<Item = Report> {
    let severity = if object.result.is_ok() { Severity::Warning } else { Severity::Error };
    object.problems.iter().map(move |problem| {
        let report = Report::new(severity, &key.path, problem.what.as_str(), problem.mend.as_str());
        let report = report.at(object.place).of(Some(object.reference.clone()));
        Report { field: Some(problem.field.clone()), ..report }
    })
}

/// Reports which objects stay because the file is unsound.
fn kept_report(key: &FileKey, kept: &BTreeSet<ObjectRef>) -> Option<Report> {
    /// How many objects the report names.
    const NAMED: usize = 3;
    let named: Vec<String> = kept.iter().take(NAMED).map(ToString::to_string).collect();
    let more = kept.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let what = format!("{}{more}: kept as they were before", named.join(", "));
    let mend = "mend the file to change them, delete it to remove them";
    (!kept.is_empty()).then(|| Report::new(Severity::Warning, &key.path, what, mend))
}

#[cfg(test)]
mod tests;
