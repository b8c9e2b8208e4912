//! Authentication: none, a bearer token, a password or a client certificate.

use std::sync::{PoisonError, RwLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The content of the header `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Token(String),
    Password { user: String, password: String },
}

impl Credential {
    fn header(&self) -> String {
        match self {
            Self::Token(token) => format!("Bearer {token}"),
            Self::Password { user, password } => {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
            }
        }
    }
}

/// How clients authenticate. If nothing is configured, all requests are served.
#[derive(Debug, Default)]
pub(crate) struct Authentication {
    credentials: RwLock<Vec<Credential>>,
    credentials_asked: bool,
    certificates_asked: bool,
}

impl Authentication {
    pub(crate) fn new(credentials: Vec<Credential>, certificates_asked: bool) -> Self {
        let credentials_asked = !credentials.is_empty();
        Self { credentials: RwLock::new(credentials), credentials_asked, certificates_asked }
    }

    /// Replaces the accepted tokens.
    pub(crate) fn replace_tokens(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(|token| Credential::Token((*token).to_owned())).collect();
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    /// A credential that is currently accepted.
    pub(crate) fn credential(&self) -> Option<Credential> {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.certificates_asked
    }

    /// Whether a request with this header is served. `certificate`: the client has presented a valid one.
    pub(crate) fn accepts(&self, authorization: Option<&str>, certificate: bool) -> bool {
        if self.certificates_asked && certificate {
            return true;
        }
        if !self.credentials_asked {
            return !self.certificates_asked;
        }
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner);
        authorization.is_some_and(|header| credentials.iter().any(|credential| credential.header() == header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(token: &str) -> Credential {
        Credential::Token(token.to_owned())
    }

    #[test]
    fn what_is_asked_for_is_needed() {
        assert!(Authentication::default().accepts(None, false));
        let password = Credential::Password { user: "a".to_owned(), password: "b".to_owned() };
        let tokens = Authentication::new(vec![token("one"), password], false);
        assert!(!tokens.accepts(None, true) && !tokens.accepts(Some("Bearer two"), false));
        assert!(tokens.accepts(Some("Bearer one"), false) && tokens.accepts(Some("Basic YTpi"), false));
        let both = Authentication::new(vec![token("one")], true);
        assert!(
            both.accepts(None, true) && both.accepts(Some("Bearer one"), false) && !both.accepts(None, false)
        );
        let certificates = Authentication::new(Vec::new(), true);
        assert!(certificates.accepts(None, true) && !certificates.accepts(None, false));
    }

    #[test]
    fn replaced_tokens_are_not_accepted_any_more() {
        let tokens = Authentication::new(vec![token("one")], false);
        tokens.replace_tokens(&["two"]);
        assert!(tokens.accepts(Some("Bearer two"), false) && !tokens.accepts(Some("Bearer one"), false));
        tokens.replace_tokens(&[]);
        assert!(!tokens.accepts(None, false));
    }
}
