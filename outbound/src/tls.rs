//! Whom the client trusts.
//!
//! The machine's certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR` override where they are read,
//! which is also how an operator adds a private authority). A bare container without any gets
//! Mozilla's roots, bundled at build time: it then trusts what was current on that day.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// The machine's roots, or the bundled ones where the machine has none.
pub(crate) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "A certificate of this machine can't be read");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("This machine has no root certificates, so the bundled ones are trusted");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// TLS 1.2 and 1.3 on `ring`, named here so that no process-wide default can change it.
pub(crate) fn config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}
