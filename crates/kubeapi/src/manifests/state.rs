//! What counts of all files together: last good versions, duplicates, what has been said. Pure.
//!
//! Contents of files go in ([`State::update`] and its siblings), changes and reports come out
//! ([`State::take`]). The rules of a file that is read again:
//!
//! * A file is *unsound* while a document of it cannot be read, while it is empty and was not before, or
//!   while something is wrong with an object with which nothing was wrong when the file was sound. An
//!   unsound file takes nothing away: what is missing in it stays. What is good in it counts at once.
//! * A sound file removes what it no longer holds.
//! * An object with a wrong element never replaces one without. A wrong element that has been there from
//!   the first look on, such as an SCTP port, does not make a file unsound for ever.
//!
//! The same object in several files: the first file in the order of paths gives it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use sluice_model::{Change, Object, ObjectRef};

use super::Batch;
use super::parse::{Parsed, ParsedObject};
use super::report::{Identity, Report, Severity};
use crate::convert::Skip;

/// Reports about one file at a time; a file may be wrong in any number of places.
const MAX_REPORTS: usize = 64;

/// A file, in the order in which files take precedence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileKey {
    /// Index of the path it was found under.
    pub(super) root: usize,
    pub(super) path: Arc<Path>,
}

/// All files.
#[derive(Debug, Default)]
pub(super) struct State {
    files: BTreeMap<FileKey, File>,
    /// Which file gives an object: what whoever watches knows.
    givers: HashMap<ObjectRef, FileKey>,
    /// Objects that a file gives anew, differently or no longer since the last [`State::take`].
    touched: BTreeMap<ObjectRef, BTreeSet<FileKey>>,
    /// Something went in since then: polls without news must cost nothing.
    is_stirred: bool,
}

#[derive(Debug, Default)]
struct File {
    held: BTreeMap<ObjectRef, Held>,
    /// Objects with which something was wrong when the file was sound, or first read, and still is.
    tolerated: BTreeSet<ObjectRef>,
    is_read: bool,
    /// What is wrong with it now.
    complaints: Vec<Report>,
    /// What has been said about it.
    said: HashSet<Identity>,
}

#[derive(Debug)]
struct Held {
    object: Object,
    /// An element of it was left out.
    is_flawed: bool,
}

impl State {
    /// A file has been read.
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

    /// A file or directory is there and cannot be read: what it gave stays.
    pub(super) fn unreadable(&mut self, key: &FileKey, what: impl Into<String>, mend: &str) {
        self.is_stirred = true;
        let file = self.files.entry(key.clone()).or_default();
        file.complaints = vec![Report::new(Severity::Error, &key.path, what, mend)];
        let held: BTreeSet<ObjectRef> = file.held.keys().cloned().collect();
        file.complaints.extend(kept_report(key, &held));
    }

    /// A directory can be read, or a file that gives nothing is as it should be.
    pub(super) fn readable(&mut self, key: &FileKey) {
        if let Some(file) = self.files.get_mut(key).filter(|file| !file.complaints.is_empty()) {
            self.is_stirred = true;
            file.complaints.clear();
        }
    }

    /// A file is gone, and what it gave with it.
    pub(super) fn remove(&mut self, key: &FileKey) {
        self.is_stirred = true;
        for reference in self.files.remove(key).into_iter().flat_map(|file| file.held.into_keys()) {
            self.touched.entry(reference).or_default().insert(key.clone());
        }
    }

    /// What is new since the last time. Deletions come first, Services last:
    /// whoever applies one by one never shows a Service before its endpoints.
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

    /// What is wrong now and was not said yet, and which files are good again.
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

/// Says what stays as it was because the file is unsound.
fn kept_report(key: &FileKey, kept: &BTreeSet<ObjectRef>) -> Option<Report> {
    /// Objects that are named.
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
