//! Everything needed to connect to an apiserver, with all files read. Two values are equal if a client made from
//! one also serves for the other.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;

/// Where the apiserver is, how it is authenticated, and how we authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Access {
    /// At least one; in order of preference.
    pub(super) servers: Vec<Url>,
    pub(super) tls: Tls,
    pub(super) auth: Auth,
}

/// The settings of the HTTP client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) trust: Trust,
    /// The name in the server's certificate, if it is not the one in the URL.
    pub(super) server_name: Option<String>,
    pub(super) proxy: Option<Url>,
    pub(super) identity: Option<Identity>,
}

/// Which server certificates are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// Those signed by the system's trusted authorities.
    #[default]
    System,
    /// Only those signed by these authorities (PEM).
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

/// The content of the header `Authorization`, or how to get it.
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
    /// The description of the cluster for the program, if it wants one.
    pub(super) cluster: Option<String>,
}

/// A secret: it never appears in a log.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret<T>(pub(super) T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
