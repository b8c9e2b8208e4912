//! Answers scrapes. One text is produced at a time, on a thread that nobody waits for, and answers all requests
//! that came before it was begun. So many scrapers, or clients that ask and go, are no more work than one. A
//! text may be large and stays in memory while a slow client takes it: only a few exist at a time.

use std::sync::{Arc, Weak};

use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How many requests wait for the next text. Others wait until the present text is done.
const WAITING: usize = 64;

/// The most texts of one format that are being sent. If slow clients hold all of them, others get the newest
/// one. It is no older than an answer may take ([`ANSWER_TIME`](crate::http_server::ANSWER_TIME)), because the
/// older ones are handed to nobody any more and are gone by then.
const TEXTS: usize = 3;

/// An answer that is cheap to clone.
pub(super) type Scrape = Response<Full<Bytes>>;

/// The format: OpenMetrics or the classic one.
type IsOpenMetrics = bool;

/// A request: the format, and where the answer goes.
type Asked = (IsOpenMetrics, oneshot::Sender<Scrape>);

/// A text with its headers.
type Text = Response<Bytes>;

/// A text as the body of an answer.
struct Body(Arc<Text>);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        self.0.body()
    }
}

/// The texts of a format that are still being sent, the newest one last.
#[derive(Default)]
struct Taken(Vec<Weak<Text>>);

impl Taken {
    /// The newest one, if no other may be made.
    fn in_place_of_another(&mut self) -> Option<Arc<Text>> {
        self.0.retain(|text| text.strong_count() > 0);
        if self.0.len() < TEXTS { None } else { self.0.last().and_then(Weak::upgrade) }
    }
}

/// For requesting scrapes. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Scrapes(mpsc::Sender<Asked>);

impl Scrapes {
    /// Starts the task that produces the texts. It ends when the last of these is dropped.
    pub(super) fn start(render: impl Fn(IsOpenMetrics) -> Text + Send + Sync + 'static) -> Self {
        let (sender, mut asked) = mpsc::channel::<Asked>(WAITING);
        let render = Arc::new(render);
        tokio::spawn(async move {
            let (mut classic_taken, mut openmetrics_taken) = (Taken::default(), Taken::default());
            while let Some(first) = asked.recv().await {
                let mut waiting = vec![first];
                while let Ok(another) = asked.try_recv() {
                    waiting.push(another);
                }
                waiting.retain(|(_, answer)| !answer.is_closed());
                let (openmetrics, classic): (Vec<_>, Vec<_>) =
                    waiting.into_iter().partition(|(is_openmetrics, _)| *is_openmetrics);
                for (form, waiting, taken) in
                    [(false, classic, &mut classic_taken), (true, openmetrics, &mut openmetrics_taken)]
                {
                    if waiting.is_empty() {
                        continue;
                    }
                    let text = match taken.in_place_of_another() {
                        Some(text) => text,
                        None => {
                            let render = Arc::clone(&render);
                            // If producing fails, the waiting clients get no text.
                            let Ok(text) = tokio::task::spawn_blocking(move || render(form)).await else {
                                continue;
                            };
                            let text = Arc::new(text);
                            taken.0.push(Arc::downgrade(&text));
                            text
                        }
                    };
                    let scrape = scrape(text);
                    for (_, answer) in waiting {
                        // If the client has gone meanwhile, nobody wants it.
                        let _ = answer.send(scrape.clone());
                    }
                }
            }
        });
        Self(sender)
    }

    /// A text that was begun after this call; or the newest one, if slow clients hold the most. `None` if it
    /// could not be produced.
    pub(super) async fn next(&self, is_openmetrics: IsOpenMetrics) -> Option<Scrape> {
        let (answer, scrape) = oneshot::channel();
        self.0.send((is_openmetrics, answer)).await.ok()?;
        scrape.await.ok()
    }
}

/// An answer that holds its text as long as it exists.
fn scrape(text: Arc<Text>) -> Scrape {
    let (status, headers) = (text.status(), text.headers().clone());
    let mut scrape = Response::new(Full::new(Bytes::from_owner(Body(text))));
    (*scrape.status_mut(), *scrape.headers_mut()) = (status, headers);
    scrape
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, PoisonError, mpsc as blocking};
    use std::time::Duration;

    use http_body_util::BodyExt;
    use hyper::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::http_server::{self, Connections, Settings};

    /// Texts that say how many were put together before; each waits until the gate lets it go on.
    struct Gated {
        scrapes: Scrapes,
        /// What has been begun: how many are under way with it.
        begun: mpsc::UnboundedReceiver<usize>,
        gate: blocking::Sender<()>,
    }

    fn gated() -> Gated {
        let (began, begun) = mpsc::unbounded_channel();
        let (gate, passing) = blocking::channel();
        let passing = Mutex::new(passing);
        let (number, under_way) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let scrapes = Scrapes::start(move |_| {
            began.send(under_way.fetch_add(1, Ordering::SeqCst) + 1).unwrap();
            // The test has ended if there is no gate.
            let _ = passing.lock().unwrap_or_else(PoisonError::into_inner).recv();
            under_way.fetch_sub(1, Ordering::SeqCst);
            Response::new(Bytes::from(number.fetch_add(1, Ordering::SeqCst).to_string()))
        });
        Gated { scrapes, begun, gate }
    }

    async fn said(scrape: Option<Scrape>) -> String {
        let body = scrape.unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// Returns when this many wait for the next text.
    async fn waiting(scrapes: &Scrapes, count: usize) {
        while scrapes.0.capacity() > WAITING - count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn all_who_asked_before_a_text_was_begun_get_it_and_the_others_the_next() {
        let Gated { scrapes, mut begun, gate } = gated();
        let ask = |is_openmetrics| {
            let scrapes = scrapes.clone();
            tokio::spawn(async move { scrapes.next(is_openmetrics).await })
        };
        let first = ask(false);
        begun.recv().await.unwrap();
        let later = [ask(false), ask(false), ask(true), ask(false)];
        waiting(&scrapes, later.len()).await;
        for _ in 0..3 {
            gate.send(()).unwrap();
        }
        assert_eq!(said(first.await.unwrap()).await, "0");
        let [first, second, openmetrics, third] = later;
        for classic in [first, second, third] {
            assert_eq!(said(classic.await.unwrap()).await, "1");
        }
        assert_eq!(said(openmetrics.await.unwrap()).await, "2");
        assert_eq!([begun.recv().await, begun.recv().await], [Some(1); 2], "one at a time");
    }

    #[tokio::test]
    async fn clients_that_ask_and_go_are_no_work() {
        const CLIENTS: usize = 32;
        let Gated { scrapes, mut begun, gate } = gated();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            patience: Duration::from_secs(20),
            answer_time: Duration::from_secs(20),
            keep_alive: false,
        };
        // Nothing is sent by it: it is dropped with what the server does for a request.
        let (during, mut requests) = mpsc::unbounded_channel();
        let answer = move |_| {
            let (scrapes, under_way) = (scrapes.clone(), oneshot::channel::<()>());
            during.send(under_way.1).unwrap();
            async move {
                let _under_way = under_way.0;
                scrapes.next(false).await.unwrap()
            }
        };
        tokio::spawn(http_server::serve_later(listener, Connections::new(CLIENTS), settings, answer));
        for _ in 0..CLIENTS {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let request = requests.recv().await.unwrap();
            drop(client);
            assert!(request.await.is_err(), "the server has done with it");
        }
        let mut last = TcpStream::connect(address).await.unwrap();
        last.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        requests.recv().await.unwrap();
        for _ in 0..=CLIENTS {
            gate.send(()).unwrap();
        }
        let mut answer = String::new();
        last.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\n1"), "the second text: {answer}");
        let begun: Vec<usize> = std::iter::from_fn(|| begun.try_recv().ok()).collect();
        assert_eq!(begun, [1, 1], "one for the first client and one for the last, one after the other");
    }

    #[tokio::test]
    async fn a_text_that_fails_is_none_and_the_next_is_put_together() {
        let is_first = AtomicUsize::new(0);
        let scrapes = Scrapes::start(move |_| {
            assert!(is_first.fetch_add(1, Ordering::SeqCst) > 0, "this one fails");
            Response::new(Bytes::from("well"))
        });
        assert!(scrapes.next(false).await.is_none());
        assert_eq!(said(scrapes.next(false).await).await, "well");
    }
    #[tokio::test]
    async fn slow_clients_keep_no_more_than_a_few_texts() {
        let begun = Arc::new(AtomicUsize::new(0));
        let number = Arc::clone(&begun);
        let scrapes = Scrapes::start(move |_| {
            let number = number.fetch_add(1, Ordering::SeqCst);
            let mut text = Response::new(Bytes::from(number.to_string()));
            *text.status_mut() = StatusCode::ACCEPTED;
            text
        });
        // One after the other: nobody shares a text because of having asked at the same time.
        let mut slow = Vec::new();
        for _ in 0..10 * TEXTS {
            slow.push(scrapes.next(false).await.unwrap());
        }
        assert_eq!(begun.load(Ordering::SeqCst), TEXTS);
        assert_eq!(slow.last().unwrap().status(), StatusCode::ACCEPTED);
        assert_eq!(said(slow.pop()).await, (TEXTS - 1).to_string(), "the newest");
        assert_eq!(
            said(scrapes.next(true).await).await,
            TEXTS.to_string(),
            "of the other form there is none"
        );
        // The oldest one has been taken, or its client was cut off.
        drop(slow.remove(0));
        for newer in [TEXTS + 1, TEXTS + 2] {
            assert_eq!(said(scrapes.next(false).await).await, newer.to_string(), "taken at once");
        }
    }
}
