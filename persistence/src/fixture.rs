//! What this crate's tests start with: a store on each engine, and rows.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use domain::{
    Timestamp,
    clock::ManualClock,
    id::{DeliveryId, EndpointId, EventId, Id as _, PublisherId},
    seal::MasterKeys,
    slug::Slug,
};
use sea_orm::{ActiveValue::Set, ConnectionTrait as _, EntityTrait as _};
use uuid::Uuid;

use crate::{
    Answer, Context, CreatedPublisher, NewPublisher, Store, StoreOptions,
    store::{
        database_config::DatabaseConfig,
        entity::{deliveries, events, webhook_endpoints},
    },
};

/// The time at which tests begin.
pub(crate) const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);

/// A test's own store, with a clock that only the test moves.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: Arc<ManualClock>,
    /// The master keys of the store.
    pub(crate) keys: MasterKeys,
    pub(crate) url: String,
    _dir: Option<tempfile::TempDir>,
}

/// A store on SQLite, and one on PostgreSQL if the environment names a server.
pub(crate) async fn engines() -> Vec<Fixture> {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("store.db").display());
    let mut all = vec![open(url, Some(dir)).await];
    if let Ok(server) = std::env::var("STATIONMASTER_TEST_POSTGRES_URL") {
        all.push(open(fresh_database(&server).await, None).await);
    }
    all
}

async fn fresh_database(server: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    // Process identifiers may repeat during the life of a cluster.
    let random = u32::from_be_bytes(domain::random::bytes());
    let name = format!("persistence_{}_{count}_{random:08x}", std::process::id());
    let db = DatabaseConfig::parse(server, 1, true)
        .unwrap()
        .connect_one()
        .await
        .unwrap();
    db.execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    db.close().await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

async fn open(database_url: String, dir: Option<tempfile::TempDir>) -> Fixture {
    let clock = Arc::new(ManualClock::at(START));
    let keys = MasterKeys::parse(&MasterKeys::generate_text("test")).unwrap();
    Fixture {
        store: store(&database_url, &keys, &clock).await,
        clock,
        keys,
        url: database_url,
        _dir: dir,
    }
}

async fn store(url: &str, keys: &MasterKeys, clock: &Arc<ManualClock>) -> Store {
    let options = StoreOptions {
        database_url: url.to_owned(),
        master_keys: keys.clone(),
        clock: Arc::clone(clock) as _,
        max_connections: 4,
        sqlite_synchronous_full: false,
        write_batch_max: 256,
        database_timeout: std::time::Duration::from_secs(10),
        migrate: true,
    };
    Store::open(options).await.unwrap()
}

pub(crate) fn no_content() -> Answer {
    Answer::new(204, String::new())
}

pub(crate) fn context() -> Context {
    Context::system("test")
}

impl Fixture {
    /// Opens the same database like another process, with other master keys.
    pub(crate) async fn beside(&self, keys: &MasterKeys) -> Store {
        store(&self.url, keys, &self.clock).await
    }

    /// Creates a publisher with its four first credentials.
    pub(crate) async fn publisher(&self, slug: &str) -> CreatedPublisher {
        let new = NewPublisher {
            slug: Slug::parse(slug).unwrap(),
            display_name: slug.to_owned(),
        };
        let made = Mutex::new(None);
        let keep = |created: &CreatedPublisher| {
            *made.lock().unwrap() = Some(created.clone());
            no_content()
        };
        self.store
            .system()
            .publishers()
            .create_publisher(&context(), new, keep)
            .await
            .unwrap();
        made.into_inner().unwrap().unwrap()
    }

    pub(crate) async fn insert<A: sea_orm::ActiveModelTrait + Send>(&self, row: A) {
        let row = Mutex::new(Some(row));
        self.store
            .write(|tx| {
                let row = row.lock().unwrap().take().unwrap();
                async move {
                    A::Entity::insert(row)
                        .exec_without_returning(tx.db())
                        .await?;
                    Ok(())
                }
            })
            .await
            .unwrap();
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.store
            .write(|tx| async move {
                tx.db().execute_unprepared(sql).await?;
                Ok(())
            })
            .await
            .unwrap();
    }

    /// The number of rows of a table. `from` may include a condition.
    pub(crate) async fn count(&self, from: &str) -> i64 {
        let sql = format!("SELECT count(*) AS n FROM {from}");
        let statement = sea_orm::Statement::from_string(self.store.backend(), sql);
        let row = self
            .store
            .read()
            .query_one_raw(statement)
            .await
            .unwrap()
            .unwrap();
        row.try_get("", "n").unwrap()
    }

    pub(crate) async fn endpoint(&self, publisher: PublisherId, send_bearer: bool) -> EndpointId {
        let id = EndpointId::generate(self.store.now());
        self.insert(webhook_endpoints::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            url: Set(format!("https://hooks.example/{id}")),
            description: Set(None),
            event_types: Set(r#"["*"]"#.into()),
            pipelines: Set(None),
            headers: Set(r#"{"x-own":"1"}"#.into()),
            enabled: Set(true),
            disabled_reason: Set(None),
            send_bearer: Set(send_bearer),
            revision: Set(1),
            created_at: Set(self.store.now().ms()),
            updated_at: Set(self.store.now().ms()),
            deleted_at: Set(None),
            signing: Set("hmac".into()),
            key_set: Set(None),
            ordered: Set(false),
            rate_limit_per_second: Set(None),
            retry_schedule: Set(None),
            max_in_flight: Set(None),
        })
        .await;
        id
    }

    pub(crate) async fn event(&self, publisher: PublisherId) -> EventId {
        let id = EventId::generate(self.store.now());
        self.insert(events::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            event_type: Set("run.created".into()),
            body: Set(format!(r#"{{"id":"{id}"}}"#)),
            created_at: Set(self.store.now().ms()),
            pipeline_slug: Set(None),
            external_id: Set(None),
        })
        .await;
        id
    }

    /// Inserts a pending delivery, due at `due`.
    pub(crate) async fn delivery(
        &self,
        publisher: PublisherId,
        event: EventId,
        endpoint: EndpointId,
        due: Timestamp,
    ) -> DeliveryId {
        let id = DeliveryId::from_uuid(Uuid::from_bytes(domain::random::bytes()));
        self.insert(deliveries::ActiveModel {
            publisher_id: Set(publisher.uuid()),
            id: Set(id.uuid()),
            event_id: Set(event.uuid()),
            endpoint_id: Set(endpoint.uuid()),
            status: Set("pending".into()),
            attempts: Set(0),
            next_attempt_at: Set(Some(due.ms())),
            created_at: Set(self.store.now().ms()),
            finished_at: Set(None),
            replay_id: Set(None),
            precedence: Set(0),
            seq: Set(0),
            throttled: Set(0),
        })
        .await;
        id
    }
}
