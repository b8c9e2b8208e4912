//! Certificates: each server has its own CAs, and its certificate can be replaced while it runs. Configures
//! `rustls`.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

/// Whether a certificate is currently valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It is valid for many years.
    Valid,
    /// It expired long ago.
    Expired,
}

/// A certificate and its key, both as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key, PKCS #8.
    pub key_pem: String,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    /// Creates a CA.
    ///
    /// # Errors
    /// The system has no randomness for a key.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("making a key for the certificate authority")?;
        let certificate = params.self_signed(&key).context("signing the certificate authority")?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ok(Self { issuer: Issuer::new(params, key), certificate: der, pem })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a client certificate for a user with these groups.
    ///
    /// # Errors
    /// The system has no randomness for a key.
    pub fn issue_client(&self, user: &str, groups: &[&str], validity: Validity) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(params, validity)?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    fn issue_server(&self, names: &[String], validity: Validity) -> Result<Arc<CertifiedKey>> {
        let mut params =
            CertificateParams::new(names).context("a name for the server's certificate is not valid")?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (certificate, key) = self.sign(params, validity)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = ring::sign::any_supported_type(&key).context("reading back the server's own key")?;
        Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        validity: Validity,
    ) -> Result<(rcgen::Certificate, KeyPair)> {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = match validity {
            Validity::Valid => date_time_ymd(2101, 1, 1),
            Validity::Expired => date_time_ymd(2002, 1, 1),
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("making a key")?;
        let certificate = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        Ok((certificate, key))
    }
}

/// The certificates of one server.
#[derive(Debug)]
pub(crate) struct Certificates {
    names: Vec<String>,
    /// The CA that signs client certificates. As in a real cluster, it is another one than for servers.
    pub(crate) client_authority: Authority,
    clients: Arc<dyn ClientCertVerifier>,
    serving: RwLock<Serving>,
}

#[derive(Debug)]
struct Serving {
    authority: Authority,
    key: Arc<CertifiedKey>,
}

impl Certificates {
    pub(crate) fn new(names: &[String], ip: IpAddr) -> Result<Self> {
        let mut names = names.to_vec();
        names.extend(
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from),
        );
        names.extend(["127.0.0.1", "::1"].map(String::from));
        names.push(ip.to_string());
        names.sort();
        names.dedup();
        let client_authority = Authority::new("kubernetes-clients")?;
        let mut roots = RootCertStore::empty();
        roots.add(client_authority.certificate.clone()).context("trusting our own authority")?;
        let provider = Arc::new(ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .context("making the verifier of client certificates")?;
        let authority = Authority::new("kubernetes")?;
        let key = authority.issue_server(&names, Validity::Valid)?;
        Ok(Self { names, client_authority, clients, serving: RwLock::new(Serving { authority, key }) })
    }

    /// The CA that clients have to trust at the moment.
    pub(crate) fn ca_pem(&self) -> String {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).authority.pem.clone()
    }

    /// Replaces the certificate by a new one of the same CA.
    pub(crate) fn replace(&self, validity: Validity) -> Result<()> {
        let mut serving = self.serving.write().unwrap_or_else(PoisonError::into_inner);
        serving.key = serving.authority.issue_server(&self.names, validity)?;
        Ok(())
    }

    /// Replaces the certificate by one of a new CA.
    pub(crate) fn replace_authority(&self) -> Result<()> {
        let authority = Authority::new("kubernetes")?;
        let key = authority.issue_server(&self.names, Validity::Valid)?;
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = Serving { authority, key };
        Ok(())
    }

    /// Whether a client certificate is currently valid.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        self.clients.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }

    /// The configuration of `rustls`.
    pub(crate) fn server_config(self: &Arc<Self>, http2: bool) -> Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_client_cert_verifier(Arc::new(AskOnly {
                provider,
                hints: self.clients.root_hint_subjects().to_vec(),
            }))
            .with_cert_resolver(Arc::new(Current(Arc::clone(self))));
        config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { Vec::new() };
        config.alpn_protocols.push(b"http/1.1".to_vec());
        // No session resumption, so that a replaced certificate is seen at once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Serves the current certificate.
#[derive(Debug)]
struct Current(Arc<Certificates>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let serving = self.0.serving.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&serving.key))
    }
}

/// Requests a client certificate and accepts any, as an apiserver does: an invalid one is an authentication
/// failure, answered with 401 and not in TLS.
#[derive(Debug)]
struct AskOnly {
    provider: Arc<CryptoProvider>,
    hints: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AskOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn certificate(identity: &Identity) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap()
    }

    #[test]
    fn only_valid_client_certificates_of_our_own_authority_are_accepted() {
        let certificates = Certificates::new(&[], [127, 0, 0, 1].into()).unwrap();
        let issue = |authority: &Authority, validity| {
            certificate(&authority.issue_client("sluice", &["system:nodes"], validity).unwrap())
        };
        let own = &certificates.client_authority;
        assert!(certificates.accepts(&[issue(own, Validity::Valid)]));
        assert!(!certificates.accepts(&[issue(own, Validity::Expired)]));
        assert!(!certificates.accepts(&[issue(&Authority::new("other").unwrap(), Validity::Valid)]));
        assert!(!certificates.accepts(&[]));
    }

    #[test]
    fn a_new_authority_is_another_one() {
        let certificates = Certificates::new(&[], [127, 0, 0, 1].into()).unwrap();
        let before = certificates.ca_pem();
        certificates.replace(Validity::Expired).unwrap();
        assert_eq!(certificates.ca_pem(), before);
        certificates.replace_authority().unwrap();
        assert_ne!(certificates.ca_pem(), before);
    }
}
