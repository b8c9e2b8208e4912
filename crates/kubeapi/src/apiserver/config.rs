//! How to reach the apiserver, from the command line and the environment.
//!
//! Order of precedence:
//! 1. `--kubeconfig FILE`, or else the files of `KUBECONFIG`; for each name the first file's entry.
//! 2. Otherwise the service account of the pod that the agent runs in.
//! 3. `--master URL`, which may be given several times, replaces the address in either of these. It is enough
//!    alone if the apiserver needs no credentials.
//!
//! In a pod the address is `KUBERNETES_SERVICE_HOST`, which kubelet sets to the cluster IP of the Service
//! `kubernetes`. Reaching that address takes a node proxy, and an agent that provides it must not need it. So
//! give it a direct address: `--master https://10.0.0.2:6443`, a kubeconfig, or `KUBERNETES_SERVICE_HOST` and
//! `KUBERNETES_SERVICE_PORT` set in the pod's manifest.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::access::{Access, Auth, Secret, Tls, Trust};
use super::files::Disk;
use super::kubeconfig;
use crate::mend;

/// Where kubelet puts a pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What to watch and how to connect.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name in the cluster.
    pub node: String,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`: instead of the kubeconfig's `current-context`.
    pub context: Option<String>,
    /// `--master`: addresses of apiservers of one cluster, in order of preference.
    pub masters: Vec<String>,
    /// Whether to follow this node's pods and the cluster's namespaces, for their annotations. Nothing waits for
    /// them, and without the right to list them everything else is still followed.
    pub pods: bool,
    /// The environment of the process.
    pub environment: Environment,
    /// Intervals and limits.
    pub timing: Timing,
}

impl Config {
    /// A configuration from the environment only.
    pub fn new(node: impl Into<String>, environment: Environment) -> Self {
        Self {
            node: node.into(),
            kubeconfig: None,
            context: None,
            masters: Vec::new(),
            pods: false,
            environment,
            timing: Timing::default(),
        }
    }
}

/// The parts of the process's environment that are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// The files of `KUBECONFIG`.
    pub kubeconfig: Vec<PathBuf>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub service: Option<(String, String)>,
    /// The directory with `token` and `ca.crt`, if there is one.
    pub service_account: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let files = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let account = PathBuf::from(SERVICE_ACCOUNT);
        Self {
            kubeconfig: std::env::split_paths(&files).filter(|path| !path.as_os_str().is_empty()).collect(),
            service: variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT")),
            service_account: account.is_dir().then_some(account),
        }
    }
}

/// Intervals and limits, with defaults that suit a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The minimum delay after a failure; it doubles with each consecutive failure. 0.8 s, as in client-go.
    pub backoff_min: Duration,
    /// The maximum delay. 30 s.
    pub backoff_max: Duration,
    /// How long to wait for an apiserver to answer, and for the next bytes of a list. 30 s.
    pub answer: Duration,
    /// How long a connection may be silent before its other end is probed: by a ping over HTTP/2, by a TCP probe
    /// over HTTP/1.1. 30 s, as in client-go. For TCP it counts in whole seconds.
    pub keep_alive: Duration,
    /// How long the other end may take to answer the probe before the connection is closed: 15 s. A watch itself
    /// may be silent for hours: an apiserver sends no bookmark for a resource that has not changed since it started.
    pub keep_alive_answer: Duration,
    /// The minimum duration requested for a watch; the maximum is twice that. 5 minutes, as in client-go, so that
    /// watches spread over the apiservers again after one was down.
    pub watch: Duration,
    /// How long to wait for the configuration's files. If it takes longer, the previous contents count. 5 s.
    pub read: Duration,
    /// The minimum interval between checks of files with credentials and certificates. 60 s; after a 401 or a
    /// failed TLS handshake they are checked at once.
    pub reload: Duration,
    /// How long another apiserver is used before the first one is tried again. 5 minutes.
    pub fail_back: Duration,
    /// How often to look for a resource that the cluster does not serve. 10 minutes.
    pub absent: Duration,
    /// Objects per page of a list. 500, as in client-go.
    pub page: usize,
    /// The maximum size of a page in bytes. A larger one is requested again with half as many objects, a list
    /// that was requested as a whole in pages. 256 MiB: about the size of 500 of the largest EndpointSlices
    /// (1000 endpoints).
    pub page_bytes: usize,
}

impl Timing {
    /// The longest time for which the loss of an apiserver with open connections stays unnoticed.
    pub(super) fn unnoticed(&self) -> Duration {
        self.keep_alive + self.keep_alive_answer
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_millis(800),
            backoff_max: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            keep_alive: Duration::from_secs(30),
            keep_alive_answer: Duration::from_secs(15),
            watch: Duration::from_secs(300),
            read: Duration::from_secs(5),
            reload: Duration::from_secs(60),
            fail_back: Duration::from_secs(300),
            absent: Duration::from_secs(600),
            page: 500,
            page_bytes: 256 << 20,
        }
    }
}

/// Why the configuration of the apiserver cannot be used. No retry helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nothing names the apiserver's address.
    #[error(
        "no apiserver to watch: give --kubeconfig FILE or --master URL, set KUBECONFIG, \
         or run in a pod with a service account"
    )]
    Nothing,
    /// A file cannot be read.
    #[error("{}: {what}: {error}: {mend}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// The system's error.
        error: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// A kubeconfig is invalid.
    #[error("kubeconfig {}{}: {what}: correct the file, or name another one", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, where the parser knows it.
        line: Option<u64>,
        /// The field and what is wrong with it.
        what: String,
    },
    /// The context does not exist.
    #[error("{origin}: no context {context:?}: choose one with --context; there {known}")]
    UnknownContext {
        /// The files that were looked at.
        origin: String,
        /// The requested context; empty for none.
        context: String,
        /// The existing contexts.
        known: String,
    },
    /// A value is wrong.
    #[error("{origin}: {field}: {what}: {mend}")]
    Value {
        /// The file, flag or variable.
        origin: String,
        /// The field in it.
        field: String,
        /// What is wrong.
        what: String,
        /// What to do about it.
        mend: String,
    },
}

impl ConfigError {
    pub(super) fn value(origin: impl ToString, field: &str, what: impl ToString, mend: &str) -> Self {
        let (origin, what) = (origin.to_string(), what.to_string());
        Self::Value { origin, field: field.to_owned(), what, mend: mend.to_owned() }
    }

    pub(super) fn file(path: &Path, what: &'static str, error: &io::Error) -> Self {
        let mend = mend::of_file(error, "name a file that exists and can be read");
        Self::File { path: path.to_owned(), what, error: error.to_string(), mend }
    }
}

/// Reads all files. Blocks.
pub(super) fn load(config: &Config, disk: &Disk) -> Result<Access, ConfigError> {
    let masters = config.masters.iter().map(|text| server("--master", "URL", text));
    let masters = masters.collect::<Result<Vec<_>, _>>()?;
    let files = match &config.kubeconfig {
        Some(file) => std::slice::from_ref(file),
        None => &config.environment.kubeconfig[..],
    };
    if !files.is_empty() {
        // As in kubectl, not all files that KUBECONFIG lists have to exist.
        let must_exist = config.kubeconfig.is_some();
        return kubeconfig::load(disk, files, must_exist, config.context.as_deref(), masters);
    }
    if config.context.is_some() {
        let mend = "give --kubeconfig FILE, too";
        return Err(ConfigError::value("--context", "NAME", "there is no kubeconfig to choose from", mend));
    }
    match (&config.environment.service_account, &config.environment.service) {
        // An unencrypted connection is to something local, and must not carry a token.
        (Some(_), _) if !masters.is_empty() && masters.iter().all(|url| url.scheme() == "http") => {
            Ok(anonymous(masters))
        }
        (Some(account), _) if !masters.is_empty() => in_pod(disk, account, masters),
        (None, _) if !masters.is_empty() => Ok(anonymous(masters)),
        (Some(account), Some((host, port))) => {
            let host = match host.parse() {
                Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
                _ => host.clone(),
            };
            let url = server("KUBERNETES_SERVICE_HOST", "address", &format!("https://{host}:{port}"))?;
            in_pod(disk, account, vec![url])
        }
        _ => Err(ConfigError::Nothing),
    }
}

fn anonymous(servers: Vec<Url>) -> Access {
    Access { servers, tls: Tls::default(), auth: Auth::None }
}

fn in_pod(disk: &Disk, account: &Path, servers: Vec<Url>) -> Result<Access, ConfigError> {
    let authorities = read(disk, &account.join("ca.crt"), "the service account's certificate authority")?;
    let token = token_file(disk, &account.join("token"))?;
    let tls = Tls { trust: Trust::Authorities(authorities), ..Tls::default() };
    Ok(Access { servers, tls, auth: Auth::Token(token) })
}

pub(super) fn read(disk: &Disk, path: &Path, what: &'static str) -> Result<Vec<u8>, ConfigError> {
    disk.read(path).map_err(|error| ConfigError::file(path, what, &error))
}

/// A token, without the newline that editors add.
pub(super) fn token_file(disk: &Disk, path: &Path) -> Result<Secret<String>, ConfigError> {
    let bytes = read(disk, path, "the token")?;
    let token = String::from_utf8_lossy(&bytes).trim().to_owned();
    if token.is_empty() || token.chars().any(|c| !c.is_ascii_graphic()) {
        let mend = "write the bearer token into it and nothing else";
        return Err(ConfigError::value(path.display(), "token", "the file holds none", mend));
    }
    Ok(Secret(token))
}

/// The base URL of an apiserver; its path ends in a slash.
pub(super) fn server(origin: impl ToString, field: &str, text: &str) -> Result<Url, ConfigError> {
    let wrong = |what: String| {
        Err(ConfigError::value(origin.to_string(), field, what, "write one such as https://10.0.0.2:6443"))
    };
    // kubectl reads an address without a scheme like this, even if there is a CA: it decides before it reads one.
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let mut url = match Url::parse(&full) {
        Ok(url) => url,
        Err(error) => return wrong(format!("{text:?} is not a URL ({error})")),
    };
    if !matches!(url.scheme(), "https" | "http") {
        return wrong(format!("{text:?} is neither https nor http"));
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
        return wrong(format!("{text:?} is not the address of a server"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(config: &Config) -> Result<Access, ConfigError> {
        super::load(config, &Disk::default())
    }

    fn config(masters: &[&str], environment: Environment) -> Config {
        let masters = masters.iter().map(|&text| text.to_owned()).collect();
        Config { masters, ..Config::new("node-1", environment) }
    }

    fn account() -> tempfile::TempDir {
        let account = tempfile::tempdir().unwrap();
        fs::write(account.path().join("token"), "secret\n").unwrap();
        fs::write(account.path().join("ca.crt"), "PEM").unwrap();
        account
    }

    fn servers(access: &Access) -> Vec<&str> {
        access.servers.iter().map(Url::as_str).collect()
    }

    #[test]
    fn nothing_to_go_by() {
        let error = load(&config(&[], Environment::default())).unwrap_err();
        assert!(error.to_string().contains("--kubeconfig FILE or --master URL"), "{error}");
        let context = Config { context: Some("a".to_owned()), ..config(&[], Environment::default()) };
        assert!(load(&context).unwrap_err().to_string().starts_with("--context"));
    }

    #[test]
    fn in_a_pod_the_service_account_counts_and_a_direct_address_wins() {
        let account = account();
        let environment = Environment {
            service: Some(("10.96.0.1".to_owned(), "443".to_owned())),
            service_account: Some(account.path().to_owned()),
            ..Environment::default()
        };
        let access = load(&config(&[], environment.clone())).unwrap();
        assert_eq!(servers(&access), ["https://10.96.0.1/"]);
        assert_eq!(access.auth, Auth::Token(Secret("secret".to_owned())));
        assert_eq!(access.tls.trust, Trust::Authorities(b"PEM".to_vec()));
        let direct = ["https://10.0.0.2:6443", "https://10.0.0.3:6443"];
        let access = load(&config(&direct, environment.clone())).unwrap();
        assert_eq!(servers(&access), ["https://10.0.0.2:6443/", "https://10.0.0.3:6443/"]);
        assert_eq!(access.auth, Auth::Token(Secret("secret".to_owned())));
        let local = load(&config(&["http://127.0.0.1:8080"], environment.clone())).unwrap();
        assert_eq!(local.auth, Auth::None, "no token over an unencrypted connection");
        let six = Some(("fd00::1".to_owned(), "443".to_owned()));
        let access = load(&config(&[], Environment { service: six, ..environment })).unwrap();
        assert_eq!(servers(&access), ["https://[fd00::1]/"]);
    }

    #[test]
    fn an_incomplete_service_account_is_named_by_its_file() {
        let account = account();
        let environment =
            Environment { service_account: Some(account.path().to_owned()), ..Environment::default() };
        let config = config(&["https://10.0.0.2"], environment);
        fs::write(account.path().join("token"), " \n").unwrap();
        let error = load(&config).unwrap_err().to_string();
        assert!(error.contains("token: the file holds none"), "{error}");
        fs::remove_file(account.path().join("ca.crt")).unwrap();
        let error = load(&config).unwrap_err().to_string();
        assert!(error.contains("ca.crt: the service account's certificate authority"), "{error}");
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("https://10.0.0.2:6443", "https://10.0.0.2:6443/"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("localhost:8080", "http://localhost:8080/"),
            ("https://proxy/k8s/clusters/a", "https://proxy/k8s/clusters/a/"),
        ] {
            assert_eq!(server("--master", "URL", text).unwrap().as_str(), expected);
        }
        for text in ["", "https://", "ftp://a", "https://a?b", "https://a b", "http://[::1"] {
            let error = server("--master", "URL", text).unwrap_err().to_string();
            assert!(error.starts_with("--master: URL: ") && error.contains("such as https://"), "{error}");
        }
    }
}
