//! For tests of the data path: a certificate authority and the credentials it gives.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Credentials, Key, Trust};

/// A certificate authority that lives as long as a test.
pub(crate) struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Credentials for a name.
    pub(crate) fn issue(&self, name: &str) -> Arc<Credentials> {
        let trust = Trust::new(&[self.0.der().clone()]).unwrap();
        let key = Key::generate(name).unwrap();
        let csr = rcgen::CertificateSigningRequestParams::from_der(&(&*key.csr).into()).unwrap();
        let leaf = csr.signed_by(&self.0).unwrap().der().clone();
        let expires = SystemTime::now() + Duration::from_secs(3600);
        Arc::new(trust.credentials(name, &key, vec![leaf], expires).unwrap())
    }
}
