//! A connection on which each answer has to be taken in time, however slowly its client reads. There is no
//! limit between answers.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream that fails with [`io::ErrorKind::TimedOut`] if written data have not been taken in time.
#[derive(Debug)]
pub(super) struct Answering<S> {
    stream: S,
    /// The time from one flush to the next: hyper flushes once an answer is written as a whole.
    time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Answering<S> {
    pub(super) fn new(stream: S, time: Duration) -> Self {
        Self { stream, time, deadline: None }
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let time = self.time;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(time)));
        if let Poll::Ready(written) = write(Pin::new(&mut self.stream), cx) {
            return Poll::Ready(written);
        }
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.deadline = None;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::body::Bytes;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn between_answers_there_is_no_deadline() {
        const ANSWER: &[u8] = b"longer than what the client takes at a time";
        let (mut client, server) = duplex(8);
        let answer = service_fn(async |_| {
            Ok::<_, Infallible>(hyper::Response::new(Full::new(Bytes::from_static(ANSWER))))
        });
        let stream = TokioIo::new(Answering::new(server, Duration::from_secs(60)));
        let serving = tokio::spawn(http1::Builder::new().serve_connection(stream, answer).without_shutdown());
        for _ in 0..2 {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut taken = Vec::new();
            while !taken.ends_with(ANSWER) {
                client.read_buf(&mut taken).await.unwrap();
            }
        }
        client.shutdown().await.unwrap();
        let ended = serving.await.unwrap().unwrap().io.into_inner();
        assert!(ended.deadline.is_none());
    }

    #[tokio::test]
    async fn what_is_taken_is_no_more_time() {
        let (mut client, server) = duplex(1);
        let mut stream = Answering::new(server, Duration::from_millis(20));
        let taking = async { while client.read(&mut [0; 1]).await.is_ok_and(|taken| taken > 0) {} };
        let writing = async {
            loop {
                if let Err(error) = stream.write_all(b"more and more").await {
                    return error;
                }
            }
        };
        let error = tokio::select! {
            error = writing => error,
            () = taking => unreachable!("the stream is not closed"),
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
