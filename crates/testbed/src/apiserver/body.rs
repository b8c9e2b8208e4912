//! Response bodies: whole ones, and streams that can be slow or cut short.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use thiserror::Error;
use tokio::sync::mpsc;

use super::faults::Faults;

/// The number of pieces that wait for a slow client before the writer waits.
const PIECES_IN_FLIGHT: usize = 4;

/// The body of a response.
#[derive(Debug)]
pub(crate) enum Body {
    /// All of it at once.
    Whole(Option<Bytes>),
    /// Streamed, as the other end of a [`Pipe`] writes it.
    Piped {
        pieces: mpsc::Receiver<Piece>,
        /// The cut was reached; earlier pieces are being flushed.
        cutting: bool,
    },
}

/// An item in a [`Pipe`].
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Cut,
}

/// The connection is cut on purpose.
#[derive(Debug, Error)]
#[error("cut on purpose")]
pub(crate) struct Cut;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Piped { cutting: true, .. } => Poll::Ready(Some(Err(Cut))),
            Self::Piped { pieces, cutting } => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Data(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::Cut) => {
                    // After an error, hyper drops what it has not flushed yet. It flushes when a body is
                    // pending, so this is pending once.
                    *cutting = true;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Piped { .. } => SizeHint::default(),
        }
    }
}

/// The writing end of a [`Body`]. The body ends normally when the pipe is dropped.
#[derive(Debug)]
pub(crate) struct Pipe {
    sender: mpsc::Sender<Piece>,
    faults: Arc<Faults>,
}

/// The client has gone away.
#[derive(Debug)]
pub(crate) struct Closed;

impl Pipe {
    pub(crate) fn new(faults: &Arc<Faults>) -> (Self, Body) {
        let (sender, pieces) = mpsc::channel(PIECES_IN_FLIGHT);
        (Self { sender, faults: Arc::clone(faults) }, Body::Piped { pieces, cutting: false })
    }

    /// Sends all bytes, as fast as the faults allow.
    pub(crate) async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let throttle = self.faults.throttle_now();
            let piece = match &throttle {
                Some(throttle) => bytes.split_to(throttle.bytes.clamp(1, bytes.len())),
                None => std::mem::take(&mut bytes),
            };
            self.sender.send(Piece::Data(piece)).await.map_err(|_| Closed)?;
            if let Some(throttle) = throttle {
                tokio::time::sleep(throttle.interval).await;
            }
        }
        Ok(())
    }

    /// Ends the body as if the connection had broken.
    pub(crate) async fn cut(&self) {
        // It fails if the client has gone away, which needs no cut.
        let _ = self.sender.send(Piece::Cut).await;
    }

    /// Waits until the client goes away.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}
