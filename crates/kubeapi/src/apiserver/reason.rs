//! Why the apiserver cannot be followed right now, and how to fix it: one line each.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::resource::Resource;

/// A failure. Every kind is retried, because its cause may be fixed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The connection cannot be established, or was cut.
    Unreachable(String),
    /// It did not answer, or a watch was silent, for this long.
    Silent(Duration),
    /// Its certificate was signed by an authority that is not trusted.
    UntrustedServer,
    /// Its certificate has expired, or is not valid yet.
    ExpiredServer,
    /// Its certificate is for other names.
    OtherServer(String),
    /// Its certificate is that of an authority.
    AuthorityServer,
    /// It rejects the client certificate, or requires one.
    ClientCertificate(String),
    /// Another TLS failure.
    Tls(String),
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden(Resource),
    /// 410: the version to continue from is no longer available. The resource is listed again.
    Expired,
    /// 429.
    Busy,
    /// Another status code.
    Status(u16, String),
    /// Its response is not one of an apiserver.
    NotUnderstood(String),
    /// The exec plugin returns no credentials.
    ExecPlugin(String),
    /// The configuration has changed and is now invalid.
    Config(String),
}

impl Reason {
    /// Whether another apiserver of the same cluster may answer differently.
    pub(super) fn is_of_server(&self) -> bool {
        self.is_tls()
            || matches!(
                self,
                Self::Unreachable(_)
                    | Self::Silent(_)
                    // If there are no other credentials: this apiserver's keys, clock or webhook may be out of sync.
                    | Self::Unauthorized
                    | Self::NotUnderstood(_)
                    | Self::Status(500.., _)
            )
    }

    /// Whether certificates are the cause; they may have been replaced on either side.
    pub(super) fn is_tls(&self) -> bool {
        matches!(
            self,
            Self::UntrustedServer
                | Self::ExpiredServer
                | Self::OtherServer(_)
                | Self::AuthorityServer
                | Self::ClientCertificate(_)
                | Self::Tls(_)
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(what) => {
                write!(f, "cannot be reached: {what}: check the address, the network and that it runs")
            }
            Self::Silent(time) => {
                write!(f, "has said nothing for {time:?}: check the network and its load")
            }
            Self::UntrustedServer => f.write_str(
                "its certificate is signed by an unknown authority: configure the cluster's CA \
                 (certificate-authority in the kubeconfig, ca.crt of the service account)",
            ),
            Self::ExpiredServer => f.write_str(
                "its certificate has expired or is not valid yet: renew it, and check this node's clock",
            ),
            Self::OtherServer(what) => write!(
                f,
                "its certificate is for another name ({what}): use a name that it is for, \
                 or set tls-server-name in the kubeconfig"
            ),
            Self::AuthorityServer => f.write_str(
                "its certificate is that of an authority (CA:TRUE, as openssl req -x509 makes it), which no server may show: \
                 give it one with basicConstraints CA:FALSE",
            ),
            Self::ClientCertificate(what) => write!(
                f,
                "it does not accept the client certificate, or wants one ({what}): renew client-certificate \
                 and client-key"
            ),
            Self::Tls(what) => {
                write!(f, "TLS failed: {what}: check that this is the apiserver's secure port")
            }
            Self::Unauthorized => {
                f.write_str("401: it does not accept the credentials: renew the token or client certificate")
            }
            Self::Forbidden(resource) => {
                let rules = match resource.is_optional() {
                    false => "deploy/base/rbac.yaml",
                    true => "deploy/components/pod-annotations, or leave out --socket-pod-annotations",
                };
                let (group, plural) = (resource.group(), resource.plural());
                write!(
                    f,
                    "403: this account may not read {resource}: apply {rules}; its ClusterRole lacks apiGroups: [{group:?}], \
                     resources: [{plural:?}], verbs: [\"list\", \"watch\"]"
                )
            }
            Self::Expired => f.write_str("410: it has forgotten where the watch was: listing again"),
            Self::Busy => f.write_str("429: it has too much to do: waiting as it asks to"),
            Self::Status(404, _) => {
                f.write_str("404: nothing is served there: check the address and its path")
            }
            Self::Status(code, message) if message.is_empty() => {
                write!(f, "{code}, and not a word: see its log, and that of what is in between")
            }
            Self::Status(code, message) => {
                write!(f, "{code}: {message}: see the apiserver's log")
            }
            Self::NotUnderstood(what) => {
                write!(
                    f,
                    "this is no apiserver, or something in between garbles it: {what}: check the address"
                )
            }
            Self::ExecPlugin(what) => write!(f, "no credentials from the exec plugin: {what}"),
            Self::Config(what) => write!(f, "{what}; going on with what was there before"),
        }
    }
}

/// A failed request.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// The apiserver that it was sent to.
    pub(super) server: String,
    /// When the apiserver asks for the next request.
    pub(super) retry_after: Option<Duration>,
}

/// The reason why a request failed before its response, or a response before its end.
pub(super) fn of_transport(error: &reqwest::Error) -> Reason {
    match find(error, |cause| cause.downcast_ref::<rustls::Error>()) {
        Some(error) => return of_tls(error),
        None if error.is_timeout() => {
            // This happens if an agent alone is restarted, and its apiserver is behind a Service.
            let what = "no connection in time (where this is an address of a Service, the rules of an earlier agent lead it to \
                        nobody: give the apiserver's own with --master, or remove them with sluice cleanup)";
            return Reason::Unreachable(what.to_owned());
        }
        None => {}
    }
    let system =
        find(error, |cause| cause.downcast_ref::<io::Error>().filter(|error| error.raw_os_error().is_some()));
    if let Some(system) = system {
        return Reason::Unreachable(system.to_string());
    }
    let is_eof = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
    let eof = find(error, |cause| cause.downcast_ref::<io::Error>().filter(|error| is_eof(error)));
    let text = one_line(&innermost(error).to_string());
    // h2's error names the cause in its text only: rustls' error for a TCP connection that ends before the TLS one.
    let is_cut = eof.is_some() || text.contains("close_notify");
    Reason::Unreachable(if is_cut { "the connection broke".to_owned() } else { text })
}

fn of_tls(error: &rustls::Error) -> Reason {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Reason::UntrustedServer,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Reason::ExpiredServer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Reason::OtherServer(one_line(&error.to_string()))
            }
            // rustls passes on its verifier's error, which has no type here.
            other if other.to_string().contains("CaUsedAsEndEntity") => Reason::AuthorityServer,
            other => Reason::Tls(one_line(&other.to_string())),
        },
        rustls::Error::AlertReceived(Alert::HandshakeFailure) => Reason::Tls(
            "it knows no way in common with this client (the key of its certificate is to be RSA, P-256, P-384 or Ed25519, \
             and not P-521)"
                .to_owned(),
        ),
        rustls::Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied),
        ) => Reason::ClientCertificate(format!("{alert:?}")),
        other => Reason::Tls(one_line(&other.to_string())),
    }
}

/// Finds the first error of this type in the chain of causes. An error wrapped by an `io::Error` is a cause,
/// too, although `source` skips it.
fn find<'a, T>(
    error: &'a (dyn Error + 'static),
    is: impl Fn(&'a (dyn Error + 'static)) -> Option<&'a T>,
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = is(cause) {
            return Some(found);
        }
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    None
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// Foreign text as part of one line, with bounded length.
pub(super) fn one_line(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    #[test]
    fn what_tls_refuses_is_said_with_a_mend() {
        let authority = OtherError(Arc::new(io::Error::other("CaUsedAsEndEntity")));
        let authority = rustls::Error::InvalidCertificate(CertificateError::Other(authority));
        let key = rustls::Error::AlertReceived(AlertDescription::HandshakeFailure);
        for (error, mend) in [(authority, "basicConstraints CA:FALSE"), (key, "P-256, P-384 or Ed25519")] {
            let said = of_tls(&error).to_string();
            assert!(said.contains(mend), "{said}");
        }
    }
}
