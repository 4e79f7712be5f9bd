//! Whom a server has to be to be believed.

use crate::Error;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Whom to believe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Trust {
    /// Whom this machine trusts.
    #[default]
    System,
    /// Whom the certificates in this file signed for.
    CaFile(PathBuf),
    /// Whoever has the one certificate with this fingerprint.
    Fingerprint(Fingerprint),
    /// Anybody. Somebody asked for it.
    Anybody,
}

/// The SHA-256 of a certificate, as a browser shows it: `AB:CD:…`, or without colons.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fingerprint: 64 hexadecimal digits of SHA-256 are, with colons or without")]
pub struct FingerprintError(String);

impl Fingerprint {
    #[must_use]
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let wrong = || FingerprintError(text.chars().take(120).collect());
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            let pair = digits.get(2 * place..2 * place + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_digits| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a connection begins with.
pub(crate) fn config(trust: &Trust) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Setup)?;
    let accept = |only| {
        let accepts = Arc::new(Accepts { only, provider: Arc::clone(&provider) });
        builder.clone().dangerous().with_custom_certificate_verifier(accepts).with_no_client_auth()
    };
    Ok(Arc::new(match trust {
        Trust::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::CaFile(path) => {
            let unread = |source| Error::CaFile { path: path.clone(), source };
            let pem = std::fs::read(path).map_err(unread)?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate =
                    certificate.map_err(|error| unread(io::Error::other(error.to_string())))?;
                roots.add(certificate).map_err(|error| unread(io::Error::other(error)))?;
            }
            if roots.is_empty() {
                return Err(Error::NoCertificate(path.clone()));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::Fingerprint(fingerprint) => accept(Some(fingerprint.clone())),
        Trust::Anybody => accept(None),
    }))
}

/// Accepts one certificate, or any. That the server has its key is verified all the same.
#[derive(Debug)]
struct Accepts {
    only: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Accepts {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Fingerprint::of(certificate);
        match &self.only {
            Some(only) if *only != found => {
                Err(rustls::Error::General(format!("its certificate has the fingerprint {found}")))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints() {
        let plain = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let fingerprint: Fingerprint = plain.parse().unwrap();
        assert_eq!(fingerprint, Fingerprint::of(b""));
        let shown = fingerprint.to_string();
        assert!(shown.starts_with("E3:B0:C4:"), "{shown}");
        assert_eq!(shown.parse(), Ok(fingerprint));
        for bad in ["", "e3", &plain[1..], &format!("{plain}00"), &plain.replace('e', "g"), "ä"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_certificates() {
        let missing = config(&Trust::CaFile("/does/not/exist".into()));
        assert!(matches!(missing, Err(Error::CaFile { .. })));
        let empty = config(&Trust::CaFile("/dev/null".into()));
        assert!(matches!(empty, Err(Error::NoCertificate(_))));
        assert!(config(&Trust::Anybody).is_ok());
    }
}
