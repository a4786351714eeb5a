//! A store with its clock, on either engine, for the tests beside this file.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    Timestamp,
    audit::{Actor, ActorKind},
    clock::ManualClock,
    id::{CredentialId, PublisherId},
    seal::MasterKeys,
    slug::Slug,
    token::TokenHash,
};
use persistence::{Answer, CachedToken, Context, Minted, NewPublisher, Store, StoreOptions};
use sea_orm::ConnectionTrait as _;
use secrecy::{ExposeSecret as _, SecretString};

pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

pub struct Bench {
    pub store: Store,
    pub clock: Arc<ManualClock>,
    pub url: String,
    pub keys: String,
    _dir: Option<tempfile::TempDir>,
}

impl Bench {
    pub async fn open(url: String, dir: Option<tempfile::TempDir>) -> Self {
        let clock = Arc::new(ManualClock::at(
            Timestamp::parse("2026-01-01T00:00:00Z").unwrap(),
        ));
        let keys = MasterKeys::generate_text("k1").to_string();
        let store = Store::open(options(&url, &keys, &clock)).await.unwrap();
        Self {
            store,
            clock,
            url,
            keys,
            _dir: dir,
        }
    }

    pub async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/test.db", dir.path().display());
        Self::open(url, Some(dir)).await
    }

    pub async fn postgres(test: &str) -> Option<Self> {
        let Ok(url) = std::env::var("STATIONMASTER_TEST_POSTGRES_URL") else {
            assert!(
                std::env::var("STATIONMASTER_TEST_STRICT").is_err(),
                "no PostgreSQL: {test}"
            );
            if let Ok(file) = std::env::var("STATIONMASTER_TEST_SKIPS") {
                use std::io::Write as _;
                let file = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(file);
                writeln!(file.unwrap(), "{test}: no STATIONMASTER_TEST_POSTGRES_URL").unwrap();
            }
            return None;
        };
        let name = format!("store_{}", hex(&domain::random::bytes::<12>()));
        let admin = sea_orm::Database::connect(&url).await.unwrap();
        admin
            .execute_unprepared(&format!("CREATE DATABASE {name}"))
            .await
            .unwrap();
        admin.close().await.unwrap();
        let (base, _) = url.rsplit_once('/').unwrap();
        Some(Self::open(format!("{base}/{name}"), None).await)
    }

    /// A publisher, the text of its admin token, and the identifier of that token.
    pub async fn publisher(&self, slug: &str) -> (PublisherId, SecretString, CredentialId) {
        let new = NewPublisher {
            slug: Slug::parse(slug).unwrap(),
            display_name: slug.to_owned(),
        };
        let seen = Mutex::new(None);
        self.store
            .system()
            .publishers()
            .create_publisher(&operator(), new, |created| {
                *seen.lock().unwrap() = Some((
                    created.publisher.id,
                    created.admin.text.clone(),
                    created.admin.credential.id,
                ));
                answer("created")
            })
            .await
            .unwrap();
        seen.into_inner().unwrap().unwrap()
    }

    pub async fn scoped(&self, token: &SecretString) -> persistence::Scoped {
        let principal = self
            .store
            .authenticate(TokenHash::of_secret(token))
            .await
            .unwrap();
        self.store.scoped(&principal.unwrap().scope)
    }

    pub async fn lives(&self, token: &SecretString) -> bool {
        self.store
            .authenticate(TokenHash::of_secret(token))
            .await
            .unwrap()
            .is_some()
    }

    /// Authenticates a token until it is cached: the process polls its own earlier change once
    /// more, which may invalidate the cache in between.
    pub async fn becomes_known(&self, token: &SecretString) {
        for _ in 0..100 {
            assert!(self.lives(token).await);
            if matches!(
                self.store.cached_token(TokenHash::of_secret(token)),
                CachedToken::Live(_)
            ) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it is never known without a query");
    }
}

pub fn options(url: &str, keys: &str, clock: &Arc<ManualClock>) -> StoreOptions {
    StoreOptions {
        database_url: url.to_owned(),
        master_keys: MasterKeys::parse(keys).unwrap(),
        clock: Arc::clone(clock) as Arc<dyn domain::Clock>,
        max_connections: 5,
        sqlite_synchronous_full: false,
        write_batch_max: 256,
        database_timeout: Duration::from_secs(10),
        migrate: true,
    }
}

pub fn operator() -> Context {
    let actor = Actor {
        kind: ActorKind::Bootstrap,
        id: "boot".to_owned(),
    };
    Context {
        actor,
        ..Context::system("test")
    }
}

pub fn answer(body: &str) -> Answer {
    Answer::new(200, body.to_owned())
}

pub fn text_of(minted: &Minted) -> Answer {
    Answer {
        holds_secret: true,
        ..answer(minted.text.expose_secret())
    }
}
