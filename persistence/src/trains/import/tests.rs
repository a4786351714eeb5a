use std::time::Duration;

use domain::{
    Timestamp,
    account::{Credential, OauthTokens, UpstreamHeader},
};
use sea_orm::{ActiveValue::Set, EntityTrait as _};
use secrecy::{ExposeSecret as _, SecretString};

use super::*;
use crate::{
    fixture::{Fixture, START, engines},
    store::entity::accounts as rows,
    trains::accounts::{OauthClient, sealed_for},
};

fn tokens(text: &str) -> Credential {
    Credential::Oauth(OauthTokens {
        access_token: SecretString::from(format!("access-{text}")),
        refresh_token: SecretString::from(format!("refresh-{text}")),
        client_secret: None,
    })
}

fn spec(text: &str) -> AccountSpec {
    let client = OauthClient {
        token_url: "https://auth.example/token".into(),
        client_id: "stationmaster".into(),
        scopes: vec!["inference".into()],
    };
    AccountSpec {
        new: NewAccount {
            name: "subscription".into(),
            provider: "anthropic".into(),
            base_url: "https://api.example".into(),
            header: UpstreamHeader::bearer(),
            credential: tokens(text),
            oauth: Some((client, later(1))),
            enabled: true,
            ceilings: Ceilings::default(),
        },
        enabled: None,
        ceilings: None,
    }
}

fn later(hours: u64) -> Timestamp {
    START.plus(Duration::from_hours(hours))
}

struct World {
    fixture: Fixture,
    publisher: Publisher,
}

impl World {
    async fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for fixture in engines().await {
            let publisher = fixture.publisher("acme").await.publisher;
            all.push(Self { fixture, publisher });
        }
        all
    }

    async fn bring(&self, spec: &AccountSpec) -> ImportResult {
        let system = self.fixture.store.system();
        let mut import = system.trains().import(&self.publisher, Vec::new(), false);
        import.account(spec).await.unwrap()
    }

    async fn row(&self) -> rows::Model {
        let found = rows::Entity::find().one(self.fixture.store.read()).await;
        found.unwrap().unwrap()
    }

    /// The access token of the only account.
    async fn access_token(&self) -> String {
        let (row, store) = (self.row().await, &self.fixture.store);
        let keys = store.inner.keys.of(store.read(), row.publisher_id).await;
        let held = Credential::open(&keys.unwrap().data, &sealed_for(&row), &row.sealed);
        held.unwrap().bearer().expose_secret().to_owned()
    }

    /// Changes the row like a refresh.
    async fn refresh(&self, text: &str, health: &str) {
        let (row, store) = (self.row().await, &self.fixture.store);
        let keys = store.inner.keys.of(store.read(), row.publisher_id).await;
        let sealed = tokens(text).seal(&keys.unwrap().data, &sealed_for(&row));
        let failed_at = (health == "failed").then(|| START.ms());
        let (sealed, row) = (&sealed, &row);
        let written = store.write(|tx| async move {
            rows::Entity::update(rows::ActiveModel {
                publisher_id: Set(row.publisher_id),
                id: Set(row.id),
                sealed: Set(sealed.clone()),
                credential_version: Set(row.credential_version + 1),
                expires_at: Set(Some(later(9).ms())),
                refreshed_at: Set(Some(START.ms())),
                health: Set(health.to_owned()),
                failed_at: Set(failed_at),
                ..Default::default()
            })
            .exec(tx.db())
            .await?;
            Ok(())
        });
        written.await.unwrap();
    }
}

#[tokio::test]
async fn the_tokens_of_a_file_are_compared_until_the_service_has_refreshed_them() {
    for world in World::all().await {
        let made = world.bring(&spec("of the file")).await;
        assert_eq!(made, ImportResult::of(ImportOutcome::Created));
        let again = world.bring(&spec("of the file")).await;
        assert_eq!(again, ImportResult::of(ImportOutcome::Unchanged));
        let done = world.bring(&spec("of another login")).await;
        assert_eq!(done.outcome, ImportOutcome::Replaced);
        assert_eq!(world.access_token().await, "access-of another login");
        let mut expires = spec("of another login");
        expires.new.oauth.as_mut().unwrap().1 = later(2);
        assert_eq!(world.bring(&expires).await.outcome, ImportOutcome::Replaced);
    }
}

#[tokio::test]
async fn refreshed_tokens_are_kept_for_as_long_as_they_work() {
    for world in World::all().await {
        world.bring(&spec("of the file")).await;
        world.refresh("refreshed", "ok").await;
        let done = world.bring(&spec("of the file")).await;
        assert_eq!(done.outcome, ImportOutcome::Unchanged);
        assert!(done.note.is_some());
        assert_eq!(world.access_token().await, "access-refreshed");

        // Even if a changed setting requires a new account.
        let mut moved = spec("of the file");
        moved.new.base_url = "https://proxy.example".into();
        assert_eq!(world.bring(&moved).await.outcome, ImportOutcome::Replaced);
        assert_eq!(world.access_token().await, "access-refreshed");
        assert_eq!(world.row().await.expires_at, Some(later(9).ms()));
        assert_eq!(world.bring(&moved).await.outcome, ImportOutcome::Unchanged);
        assert_eq!(world.access_token().await, "access-refreshed");
        assert_eq!(world.bring(&moved).await.outcome, ImportOutcome::Unchanged);
        assert_eq!(world.access_token().await, "access-refreshed");

        // The tokens are bound to their client.
        world.refresh("refreshed again", "ok").await;
        moved.new.oauth.as_mut().unwrap().0.client_id = "another".into();
        assert_eq!(world.bring(&moved).await.outcome, ImportOutcome::Replaced);
        assert_eq!(world.access_token().await, "access-of the file");
    }
}

#[tokio::test]
async fn an_account_whose_refresh_failed_takes_the_tokens_of_the_file() {
    for world in World::all().await {
        world.bring(&spec("of the file")).await;
        world.refresh("dead", "failed").await;
        let done = world.bring(&spec("of a new login")).await;
        assert_eq!(done, ImportResult::of(ImportOutcome::Replaced));
        assert_eq!(world.access_token().await, "access-of a new login");
        let again = world.bring(&spec("of a new login")).await;
        assert_eq!(again, ImportResult::of(ImportOutcome::Unchanged));
    }
}

#[tokio::test]
async fn a_publisher_is_found_by_slug_and_identifier_until_it_is_deleted() {
    for world in World::all().await {
        let system = world.fixture.store.system();
        for name in ["acme", &world.publisher.id.to_string()] {
            let found = system.trains().publisher_named(name).await.unwrap();
            assert_eq!(found.id, world.publisher.id);
        }
        world
            .fixture
            .execute("UPDATE publishers SET status = 'deleted', deleted_at = 1, live_slug = NULL")
            .await;
        for name in ["acme", &world.publisher.id.to_string()] {
            let found = system.trains().publisher_named(name).await;
            assert!(matches!(found, Err(StoreError::Refused(_))));
        }
    }
}

#[tokio::test]
async fn a_revoked_key_is_known_for_as_long_as_its_train() {
    for world in World::all().await {
        let system = world.fixture.store.system();
        let slug = Slug::parse("t").unwrap();
        let train = TrainSpec {
            slug: slug.clone(),
            description: None,
            enabled: None,
            sticky: None,
            slack: None,
            accounts: None,
        };
        let key = ClientKeySpec {
            train: slug,
            hash: TokenHash::of("a key of another make"),
            last_four: "make".into(),
            name: None,
        };
        let mut import = system.trains().import(&world.publisher, Vec::new(), false);
        import.train(&train).await.unwrap();
        let made = import.client_key(&key).await.unwrap();
        assert_eq!(made, ImportResult::of(ImportOutcome::Created));
        world
            .fixture
            .execute("UPDATE train_tokens SET revoked_at = 1")
            .await;
        let swept = system
            .operations()
            .sweep_table("train_tokens", START, 500)
            .await
            .unwrap();
        assert_eq!(swept, 0);
        let again = import.client_key(&key).await.unwrap();
        assert_eq!(again.outcome, ImportOutcome::Unchanged);
        assert!(again.note.is_some());
        assert_eq!(world.fixture.count("train_tokens").await, 1);
        let live = "train_tokens WHERE revoked_at IS NULL";
        assert_eq!(world.fixture.count(live).await, 0);
    }
}
