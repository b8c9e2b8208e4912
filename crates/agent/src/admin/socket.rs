//! The admin socket: its place, who may connect, and which of two running agents has it.
//!
//! A socket is created beside its path and renamed onto it. So the path never names a socket that others may
//! connect to, and a newer agent takes it from an older or dead one in one step.

use std::ffi::OsStr;
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use crate::http_server::Listen;

/// Its default path on a node.
pub const DEFAULT_PATH: &str = "/run/sluice/admin.sock";

/// How often to check that the path still leads to a live socket.
const LOOK: Duration = Duration::from_secs(1);

/// How long the socket at the path may take to accept.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket at its path. Dropping it removes the path, unless another socket is there by now.
#[derive(Debug)]
pub(super) struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode number.
    identity: (u64, u64),
}

impl AdminSocket {
    /// Listens at a path, in place of any other socket there. Creates the directory if it is missing.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
        if let Some(directory) = directory {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut beside = name.to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = path.with_file_name(beside);
        remove_orphans(path);
        // Left by an earlier process with the same id.
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        let placed = fs::set_permissions(&beside, Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(&beside))
            .and_then(|made| fs::rename(&beside, path).map(|()| identity(&made)));
        match placed {
            Ok(identity) => Ok(Self { listener, path: path.to_owned(), identity }),
            Err(error) => {
                let _ = fs::remove_file(&beside);
                Err(error)
            }
        }
    }

    /// Whether the path leads to this socket.
    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Returns once the path leads nowhere: the socket was removed, or the agent that took the path is gone.
    pub(super) async fn orphaned(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.is_orphaned().await {
                return;
            }
        }
    }

    async fn is_orphaned(&self) -> bool {
        if self.is_in_place() {
            return false;
        }
        let connected = tokio::time::timeout(PATIENCE, UnixStream::connect(&self.path)).await;
        let is_nobody = |kind| matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        matches!(connected, Ok(Err(error)) if is_nobody(error.kind()))
    }
}

/// Removes sockets of processes that were killed before they could rename them: nobody listens there.
fn remove_orphans(path: &Path) {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return;
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_beside = entry.file_name().to_str().is_some_and(|other| {
            let number = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        let is_orphan = || {
            let connected = std::os::unix::net::UnixStream::connect(entry.path());
            connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        if is_beside && is_orphan() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if self.is_in_place() {
            // The directory may be read-only by now; the next agent replaces the socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listen for Arc<AdminSocket> {
    type Stream = UnixStream;

    /// Closes connections of all but root and the agent's own user. The mode of the socket already keeps others
    /// off, except those with capabilities.
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if is_allowed(peer.uid()) => return Ok(stream),
                Ok(peer) => warn!(
                    user = peer.uid(),
                    "only root, and the user that the agent runs as, may use the admin socket"
                ),
                Err(error) => warn!("cannot tell who connects to the admin socket: {error}"),
            }
        }
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }
}

fn is_allowed(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

/// The remedy for an error of [`AdminSocket::bind`].
pub(super) fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "let it write there (in a pod: mount a hostPath or an emptyDir), or choose another place with --admin-socket"
        }
        io::ErrorKind::InvalidInput => "give --admin-socket a path of at most 90 bytes",
        _ => "choose another place with --admin-socket, or --admin-socket= for none",
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_connect_and_it_goes_with_its_agent() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("run/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        drop(socket);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        assert!(!is_allowed(rustix::process::geteuid().as_raw() + 1));
    }

    #[tokio::test]
    async fn a_newer_one_takes_the_path_and_the_older_one_leaves_it_alone() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("admin.sock");
        let older = AdminSocket::bind(&path).unwrap();
        let newer = AdminSocket::bind(&path).unwrap();
        assert!(!older.is_in_place() && newer.is_in_place());
        drop(older);
        assert!(newer.is_in_place());
    }

    #[tokio::test]
    async fn what_a_process_has_left_that_was_killed_before_its_socket_had_its_name_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        let beside = |end: &str| directory.path().join(format!("admin.sock.{end}"));
        drop(UnixListener::bind(beside("4711")).unwrap());
        let _living = UnixListener::bind(beside("4712")).unwrap();
        fs::write(beside("old"), "somebody's").unwrap();
        let _socket = AdminSocket::bind(&path).unwrap();
        assert!(!beside("4711").exists());
        assert!(path.exists() && beside("4712").exists() && beside("old").exists());
    }

    #[tokio::test]
    async fn a_path_that_leads_nowhere_is_noticed() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("admin.sock");
        let older = AdminSocket::bind(&path).unwrap();
        assert!(!older.is_orphaned().await, "it is in place");
        let newer = AdminSocket::bind(&path).unwrap();
        assert!(!older.is_orphaned().await, "another agent is there");
        drop(newer);
        assert!(older.is_orphaned().await, "nothing is there");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(older.is_orphaned().await, "what is there is dead");
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_taken_over_and_what_is_no_socket_is_not() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = AdminSocket::bind(&path).unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(socket);
        fs::write(&path, "precious").unwrap();
        assert!(AdminSocket::bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
