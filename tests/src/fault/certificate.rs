//! Certificates for servers, good ones and bad ones.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What is the matter with a server's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// Nothing: it is the authority's, for `localhost` and 127.0.0.1.
    Good,
    /// It is for another name.
    WrongName,
    /// It was valid in 2001.
    Expired,
    /// The server signed it itself.
    SelfSigned,
}

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// [`rcgen::Error`] where no key can be made.
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Its own certificate, for a file of roots.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// What a server with such a certificate needs.
    ///
    /// # Errors
    /// [`rcgen::Error`] where no key can be made.
    pub(super) fn acceptor(&self, identity: Identity) -> Result<TlsAcceptor, rcgen::Error> {
        let key = KeyPair::generate()?;
        let names = match identity {
            Identity::WrongName => vec!["elsewhere.example".to_owned()],
            _ => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        };
        let mut params = CertificateParams::new(names)?;
        if identity == Identity::Expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let certificate: CertificateDer<'static> = match identity {
            Identity::SelfSigned => params.self_signed(&key)?.into(),
            _ => params.signed_by(&key, &self.issuer)?.into(),
        };
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key that was just made is one");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the key is the certificate's");
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
