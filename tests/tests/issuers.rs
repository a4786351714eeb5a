//! Sign-in elsewhere, at a certified OpenID provider.

use domain::{Clock as _, Slug, clock::SystemClock};
use identity::issuers::{Callback, Issuer, IssuerError, OpenIdSettings, Pending};
use outbound::{Client, ClientLimits, Policy};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use url::Url;

use crate::oauth::cli::{Provider, browse};

/// A page for the browser to come back to. It shows the address at which it was asked.
async fn page() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/callback", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let read = stream.read_buf(&mut request).await.unwrap();
                assert_ne!(read, 0, "a request ends early");
            }
            let request = String::from_utf8(request).unwrap();
            let target = request.split(' ').nth(1).unwrap();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{target}",
                target.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, task)
}

#[tokio::test]
async fn a_person_of_a_certified_provider_signs_in_once_by_a_code() {
    let name = "issuers::a_person_of_a_certified_provider_signs_in_once_by_a_code";
    let Some(provider) = Provider::start(name).await else {
        return;
    };
    let (redirect_uri, page) = page().await;
    for (client_id, secret) in [
        ("public", None),
        ("basic", Some("basic-secret-of-the-tests")),
    ] {
        let settings = OpenIdSettings {
            name: Slug::parse("idp").unwrap(),
            issuer: provider.url.clone(),
            client_id: client_id.to_owned(),
            client_secret: secret.map(SecretString::from),
            scopes: "openid".to_owned(),
        };
        let client = Client::new(Policy::anywhere(), ClientLimits::default());
        let issuer = Issuer::openid(settings, client).unwrap();
        let started = issuer.begin(&redirect_uri).await.unwrap();
        let shown = browse(&started.url).await;
        let back = Url::parse(&redirect_uri).unwrap().join(&shown).unwrap();
        let parameter = |wanted: &str| {
            let mut pairs = back.query_pairs();
            pairs.find_map(|(name, value)| (name == wanted).then(|| value.into_owned()))
        };
        assert_eq!(parameter("state").unwrap(), started.state.expose_secret());
        let (code, iss) = (parameter("code"), parameter("iss"));
        assert_eq!(iss.as_deref(), Some(provider.url.as_str()));
        let finish = async |iss: Option<&str>| {
            let callback = Callback {
                code: code.as_deref(),
                iss,
                error: None,
            };
            let pending = Pending {
                provider: "idp",
                redirect_uri: &redirect_uri,
                nonce: &started.nonce,
                pkce_verifier: &started.pkce_verifier,
            };
            issuer.finish(callback, pending, SystemClock.now()).await
        };
        // The provider says that it names itself.
        let unnamed = finish(None).await;
        assert_eq!(unnamed, Err(IssuerError::Refused("iss")));
        let person = finish(iss.as_deref()).await.unwrap();
        assert_eq!((person.subject.as_str(), person.email), ("person", None));
        assert_eq!(person.issuer, provider.url);
        let again = finish(iss.as_deref()).await;
        assert_eq!(again, Err(IssuerError::Refused("code_refused")));
    }
    page.abort();
}
