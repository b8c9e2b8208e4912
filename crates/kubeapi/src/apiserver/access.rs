//! What it takes to talk to an apiserver, with every file read: two of these are equal if a client
//! made from one serves for the other.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;

/// Where the apiserver is, how it is known for what it is, and how it knows us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// At least one; in order of preference.
    pub(super) servers: Vec<Url>,
    pub(super) tls: Tls,
    pub(super) auth: Auth,
}

/// What the HTTP client has to be made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) trust: Trust,
    /// The name that the certificate is for, where it is not the one in the URL.
    pub(super) server_name: Option<String>,
    pub(super) proxy: Option<Url>,
    pub(super) identity: Option<Identity>,
}

/// Which certificates of a server are good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// Those of the authorities that the system trusts.
    #[default]
    System,
    /// Those of these authorities only: PEM.
    Authorities(Vec<u8>),
    /// Any.
    Anything,
}

/// A client certificate and its key: PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Secret<Vec<u8>>,
}

/// What goes into the header `Authorization`, or how to come by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Auth {
    None,
    Token(Secret<String>),
    Basic { user: String, password: Secret<String> },
    Exec(Exec),
}

/// A program that prints credentials (`client.authentication.k8s.io`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exec {
    pub(super) api_version: String,
    pub(super) command: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, Secret<String>)>,
    pub(super) install_hint: Option<String>,
    /// What the program is told about the cluster, where it wants to know.
    pub(super) cluster: Option<String>,
}

/// Something that no log may show.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret<T>(pub(super) T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
