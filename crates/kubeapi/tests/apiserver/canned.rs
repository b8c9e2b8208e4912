//! A server that says what it is told to: for answers that the testbed's apiserver never gives.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// An empty list, for any resource.
pub(crate) const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n{\"metadata\":{\"resourceVersion\":\"1\"},\"items\":null}\n";

/// A watch that has nothing to say.
pub(crate) const QUIET: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

pub(crate) struct Canned {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Canned {
    /// Answers requests by their first line, each on a connection of its own, which then stays open, unless the answer says
    /// that it closes.
    pub(crate) async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&heads), Arc::new(answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(serve(connection, Arc::clone(&log), Arc::clone(&answer)));
            }
        });
        Self { address, heads, _tasks: tasks }
    }

    /// First lines of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.heads().iter().map(|head| first_line(head).to_owned()).collect()
    }

    /// The same with all headers.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn first_line(head: &str) -> &str {
    head.lines().next().unwrap_or_default()
}

async fn serve(
    mut connection: TcpStream,
    log: Arc<Mutex<Vec<String>>>,
    answer: Arc<impl Fn(&str) -> String + Send + Sync>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
        if head.ends_with(b"\r\n\r\n") {
            let request = String::from_utf8_lossy(&head).into_owned();
            let answer = answer(first_line(&request));
            log.lock().unwrap().push(request);
            let written = connection.write_all(answer.as_bytes()).await;
            if written.is_err() || answer.contains("\r\nConnection: close\r\n") {
                return;
            }
            head.clear();
        }
    }
}
