//! The certificate authorities that the client trusts.
//!
//! They are those of the machine. `SSL_CERT_FILE` and `SSL_CERT_DIR` say where they are read from;
//! with them an operator can add a private authority. On a machine without any, the client trusts
//! Mozilla's root certificates as they were when the program was built.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// The machine's root certificates, or the bundled ones if the machine has none.
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

/// The TLS settings: TLS 1.2 and 1.3 by `ring`, given here so that no process-wide default can
/// change the library.
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
