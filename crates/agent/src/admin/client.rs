//! Asks an agent over its admin socket. Runs in the process of a command.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{Complaint, VERSION_HEADER};

/// How long an answer may take. The agent is on this machine, and gives up earlier itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// This program's version.
const OURS: &str = env!("CARGO_PKG_VERSION");

/// Asks for a path; returns the agent's answer.
///
/// # Errors
/// There is no agent, it may not be asked, or it answers with an error.
pub(super) async fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    match tokio::time::timeout(PATIENCE, exchange(socket, path)).await {
        Ok(answer) => answer,
        Err(_) => bail!(
            "the agent at {} does not answer within {} s: `sluice status` or its log may say why",
            socket.display(),
            PATIENCE.as_secs()
        ),
    }
}

async fn exchange<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
    let cut_off = || {
        format!("the agent at {} ended the connection: it has ended, or you are not root", socket.display())
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(cut_off)?;
    tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "agent").body(Empty::<Bytes>::new());
    let response =
        sender.send_request(request.context("this cannot be asked")?).await.with_context(cut_off)?;
    let status = response.status();
    let theirs = response.headers().get(VERSION_HEADER).and_then(|version| version.to_str().ok());
    let theirs = theirs.map(str::to_owned);
    let body = response.into_body().collect().await.with_context(cut_off)?.to_bytes();
    let other = || match theirs.as_deref() {
        Some(OURS) => "the agent's answer is not understood".to_owned(),
        theirs => format!(
            "the agent is of version {} and this program of {OURS}, which does not understand it: use the program that \
             the agent runs from (`kubectl exec` in its pod)",
            theirs.unwrap_or("unknown")
        ),
    };
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).with_context(other);
    }
    match serde_json::from_slice::<Complaint>(&body) {
        Ok(complaint) if theirs.as_deref() == Some(OURS) => Err(anyhow!(complaint.error)),
        Ok(complaint) => Err(anyhow!(complaint.error).context(other())),
        Err(_) => Err(anyhow!(other())),
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> anyhow::Error {
    if let Ok(there) = socket.metadata()
        && !there.file_type().is_socket()
    {
        let what = if there.is_dir() { "a directory" } else { "a file" };
        let path = socket.display();
        return anyhow!(
            "{path} is {what}, and no socket: give the agent's --admin-socket, a path that ends in .sock mostly"
        );
    }
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "no agent answers at {socket}: start one with --admin-socket (one that captures has it anyway), give this \
             command the agent's --admin-socket, or run it in the agent's pod (`kubectl exec`)"
        ),
        io::ErrorKind::ConnectionRefused => {
            anyhow!("the agent that answered at {socket} has ended without a trace: start it again")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "only root, and the user that the agent runs as, may ask it at {socket}: run this as one of these (sudo)"
            )
        }
        _ => anyhow!("cannot connect to {socket}: {error}: give the agent's --admin-socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_socket_is_said_to_be_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, what) in
            [(directory.path(), "is a directory, and no socket"), (&file, "is a file, and no socket")]
        {
            let error = ask::<()>(path, "/v1/status").await.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let gone = directory.path().join("gone");
        drop(std::os::unix::net::UnixListener::bind(&gone).unwrap());
        let error = ask::<()>(&gone, "/v1/status").await.unwrap_err().to_string();
        assert!(error.contains("has ended without a trace"), "{error}");
    }
}
