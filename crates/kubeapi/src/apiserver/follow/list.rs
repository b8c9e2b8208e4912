//! Reads a list, page by page.

use std::collections::HashSet;
use std::time::Duration;

use sluice_model::{Change, ObjectRef};
use tokio::time::{Instant, sleep};

use super::super::answer::Answer;
use super::super::decode::{self, Page};
use super::super::reason::{self, Failure, Reason};
use super::super::resume::{Resume, resume};
use super::{Follower, News};

/// The timeout of a whole page, in multiples of that for the next bytes: some minutes. An apiserver's own is one.
const PAGE_LONGEST: u32 = 10;

/// If a list had at least this many objects and more than half are gone, that is logged.
const MANY: usize = 10;

impl Follower {
    /// Reads all pages. Objects that are gone are reported as deleted after the last page. A list other than the
    /// first takes effect as a whole, or not at all if a page finally fails (client-go's reflector: `Replace`
    /// after the last page): an endpoint that moves from one slice to another must not be missing in between.
    pub(super) async fn read_list(&mut self) -> Result<String, Failure> {
        let mut changes = Vec::new();
        let before = self.health().is_listed().then(|| self.known.clone());
        let read = self.read_pages(&mut changes).await;
        match (before, &read) {
            (Some(before), Err(_)) => self.known = before,
            // Of a first list, the pages before a failure count.
            _ => self.say(News::Changes(changes)).await,
        }
        read
    }

    /// Reads pages. A page that fails is requested again, because the following ones have the same version. A
    /// failure of the first page fails the whole list at once.
    async fn read_pages(&mut self, changes: &mut Vec<Change>) -> Result<String, Failure> {
        let is_first = !self.health().is_listed();
        let before = self.known.len();
        let mut seen = HashSet::new();
        // Objects that cannot be used, and so are not in `known`.
        let mut unusable = HashSet::new();
        let mut next = String::new();
        loop {
            let (answer, body) = match self.page(&next).await {
                Ok(Some(page)) => page,
                Ok(None) => continue,
                Err(failure)
                    if !next.is_empty() && may_pass(&failure.reason) && self.paging.page_failed() =>
                {
                    let delay = self.delay(&failure);
                    self.say(News::Failed(self.resource)).await;
                    sleep(delay).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            self.paging.page_came();
            let page: Page<'_> = match serde_json::from_slice(&body) {
                Ok(page) => page,
                Err(error) => return Err(self.not_understood(&answer, error.to_string()).await),
            };
            if page.metadata.version.is_empty() {
                let what = "a list without a resourceVersion".to_owned();
                return Err(self.not_understood(&answer, what).await);
            }
            for item in page.items.iter().flatten() {
                let object = decode::object(self.resource, item.get());
                match self.apply(object, changes) {
                    Some(name) if self.known.contains(&name) => {
                        seen.insert(name);
                    }
                    name => unusable.extend(Some(name).filter(|name| self.warned.has(name))),
                }
            }
            self.health.contact(self.resource);
            if is_first {
                // Nothing uses a first list before it is complete, so it need not be collected here as well.
                self.say(News::Changes(std::mem::take(changes))).await;
            }
            next = page.metadata.next;
            if next.is_empty() {
                self.end_list(before, seen, &unusable, changes);
                return Ok(page.metadata.version);
            }
        }
    }

    /// Handles the end of a list: all existing objects have been seen.
    fn end_list(
        &mut self,
        before: usize,
        seen: HashSet<ObjectRef>,
        unusable: &HashSet<Option<ObjectRef>>,
        changes: &mut Vec<Change>,
    ) {
        let gone = self.known.difference(&seen).cloned().map(Change::Delete);
        let listed = changes.len();
        changes.extend(gone);
        let gone = changes.len() - listed;
        if before >= MANY && gone > before / 2 {
            let resource = self.resource;
            tracing::warn!(
                "a new list of {resource} has {gone} of {before} no more: they are gone, or it is another cluster's"
            );
        }
        self.known = seen;
        let known = &self.known;
        self.warned
            .retain(|name| unusable.contains(name) || name.as_ref().is_some_and(|name| known.contains(name)));
    }

    /// A page, and the response that it came in; `None` if it is too large and a smaller one has to be requested.
    async fn page(&mut self, next: &str) -> Result<Option<(Answer, Vec<u8>)>, Failure> {
        let mut query = self.selectors();
        query.extend(self.paging.limit().map(|limit| ("limit", limit.to_string())));
        if !next.is_empty() {
            query.push(("continue", next.to_owned()));
        }
        let mut answer = self.get(&query).await?;
        match self.body(&mut answer).await {
            Ok(Some(body)) => Ok(Some((answer, body))),
            Ok(None) if self.paging.too_large() => Ok(None),
            Ok(None) => {
                let what = format!("a list of more than {} MiB", self.timing.page_bytes >> 20);
                Err(answer.failure(Reason::NotUnderstood(what)))
            }
            Err(failure) => {
                // The head of the response was fine. Another apiserver may send a complete one.
                self.transport.give_up(answer.index(), &failure.reason).await;
                Err(failure)
            }
        }
    }

    /// The whole body of a page; `None` if it is too large.
    async fn body(&self, answer: &mut Answer) -> Result<Option<Vec<u8>>, Failure> {
        let began = Instant::now();
        let longest = self.timing.answer * PAGE_LONGEST;
        let (mut body, mut is_said) = (Vec::new(), false);
        while let Some(bytes) = answer.chunk(self.timing.answer).await? {
            if body.len() + bytes.len() > self.timing.page_bytes {
                return Ok(None);
            }
            body.extend_from_slice(&bytes);
            let took = began.elapsed();
            if took > longest {
                return Err(answer.failure(Reason::Unreachable(slow(body.len(), took))));
            }
            if took > self.timing.answer && !std::mem::replace(&mut is_said, true) {
                tracing::warn!(resource = %self.resource, "{}: what is between here and the apiserver is slow", slow(body.len(), took));
            }
        }
        Ok(Some(body))
    }

    async fn not_understood(&self, answer: &Answer, what: String) -> Failure {
        let failure = answer.failure(Reason::NotUnderstood(reason::one_line(&what)));
        self.transport.give_up(answer.index(), &failure.reason).await;
        failure
    }
}

/// Whether a failed page may be requested again later: the version of the list is still available.
fn may_pass(reason: &Reason) -> bool {
    resume(reason) == Resume::Watch || matches!(reason, Reason::Status(500 | 504, _))
}

fn slow(bytes: usize, took: Duration) -> String {
    format!("of a list {bytes} bytes came in {} s, and it is not complete", took.as_secs())
}
