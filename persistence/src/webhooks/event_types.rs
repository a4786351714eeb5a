//! A publisher's descriptions of its own types of events: a text, an example, a schema.

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{Code, JsonText, Problem, Timestamp, audit::Action, limits::EVENT_TYPES};
use moka::sync::Cache;
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, IntoActiveModel as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::event_types,
        error::{Result, StoreError, corrupt_row},
        plane_state::PlaneState,
        quota::over_quota,
    },
    webhooks::Webhooks,
};

/// How long schemas are cached. A change takes effect at once in the process that made it, and
/// within this time in the others.
const KEPT: Duration = Duration::from_secs(1);
/// Most bytes of schemas that are cached.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// A type of events that its publisher has described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishersType {
    /// The type.
    pub event_type: String,
    /// A description for people.
    pub description: Option<String>,
    /// An example of the data of such an event.
    pub example: Option<JsonText>,
    /// The JSON Schema that data of such an event must fit.
    pub schema: Option<Value>,
    /// Increased with each change.
    pub revision: i64,
    /// When the type was first described.
    pub created_at: Timestamp,
    /// When the description last changed.
    pub updated_at: Timestamp,
}

/// The description of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventTypePut {
    /// A text for people.
    pub description: Option<String>,
    /// An example of the data of such an event.
    pub example: Option<JsonText>,
    /// The JSON Schema that data of such an event must fit.
    pub schema: Option<Value>,
}

/// The schema of a type. With the same `id` and `revision`, it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeSchema {
    /// The identifier of the description.
    pub id: Uuid,
    /// The revision of the description.
    pub revision: i64,
    /// The schema.
    pub schema: Value,
}

/// A publisher's schemas, by type.
type SchemasByName = Arc<HashMap<String, TypeSchema>>;

/// Cached schemas by publisher, with their size in bytes.
pub(crate) struct TypeSchemas(Cache<Uuid, (SchemasByName, u32)>);

impl TypeSchemas {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, (_, bytes): &(SchemasByName, u32)| *bytes)
            .time_to_live(KEPT)
            .build();
        Self(cache)
    }
}

impl PlaneState for TypeSchemas {}

impl PublishersType {
    fn of_row(row: event_types::Model) -> Result<Self> {
        Ok(Self {
            event_type: row.event_type,
            description: row.description,
            example: row.example.map(example_of).transpose()?,
            schema: value_of(row.schema.as_deref())?,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
        })
    }
}

fn value_of(text: Option<&str>) -> Result<Option<Value>> {
    text.map(|text| serde_json::from_str(text).map_err(|_| corrupt_row("description of a type")))
        .transpose()
}

fn example_of(text: String) -> Result<JsonText> {
    JsonText::parse(text).ok_or_else(|| corrupt_row("description of a type"))
}

fn text_of(value: Option<&Value>) -> Option<String> {
    value.map(Value::to_string)
}

async fn row_of(tx: &Tx, owner: Uuid, event_type: &str) -> Result<Option<event_types::Model>> {
    let key = (owner, event_type.to_owned());
    Ok(event_types::Entity::find_by_id(key).one(tx.db()).await?)
}

async fn put(
    tx: &Tx,
    owner: Uuid,
    event_type: &str,
    new: &EventTypePut,
    if_match: Option<Expected>,
) -> Result<Audited<(PublishersType, bool)>> {
    let texts = (
        new.description.clone(),
        new.example.as_ref().map(JsonText::to_string),
        text_of(new.schema.as_ref()),
    );
    let old = row_of(tx, owner, event_type).await?;
    let made = old.is_none();
    let (mut row, action) = match old {
        Some(row) => {
            check_revision(if_match, row.revision)?;
            if (&row.description, &row.example, &row.schema) == (&texts.0, &texts.1, &texts.2) {
                return Ok(Audited::unchanged((PublishersType::of_row(row)?, false)));
            }
            (row, Action::EventTypeUpdated)
        }
        None if if_match.is_some() => return Err(Code::PreconditionFailed.into()),
        None => {
            check_limit(tx, owner).await?;
            let row = event_types::Model {
                publisher_id: owner,
                event_type: event_type.to_owned(),
                id: Uuid::from_bytes(domain::random::bytes()),
                description: None,
                example: None,
                schema: None,
                revision: 0,
                created_at: tx.now.ms(),
                updated_at: tx.now.ms(),
            };
            (row, Action::EventTypeCreated)
        }
    };
    (row.description, row.example, row.schema) = texts;
    row.revision += 1;
    row.updated_at = tx.now.ms();
    let active = row.clone().into_active_model().reset_all();
    if made {
        event_types::Entity::insert(active)
            .exec_without_returning(tx.db())
            .await?;
    } else {
        event_types::Entity::update(active).exec(tx.db()).await?;
    }
    let facts = json!({ "schema": row.schema.is_some() });
    let entry = audit_entry(action, "event_type", event_type, facts);
    let described = PublishersType::of_row(row)?;
    Ok(Audited::new((described, made), owner, entry))
}

/// The wrapper of administrative changes has locked the publisher's row, so the count holds.
async fn check_limit(tx: &Tx, owner: Uuid) -> Result<()> {
    let there = event_types::Entity::find()
        .filter(event_types::Column::PublisherId.eq(owner))
        .count(tx.db())
        .await?;
    if there >= EVENT_TYPES {
        let limit = u32::try_from(EVENT_TYPES).unwrap_or(u32::MAX);
        return Err(over_quota("described event types", limit));
    }
    Ok(())
}

impl Webhooks<Scoped> {
    /// The types that the publisher has described, by name; at most [`EVENT_TYPES`].
    pub async fn event_types(&self) -> Result<Vec<PublishersType>, StoreError> {
        let rows = event_types::Entity::find()
            .filter(event_types::Column::PublisherId.eq(self.scope.uuid()))
            .order_by_asc(event_types::Column::EventType)
            .all(self.store.read())
            .await?;
        rows.into_iter().map(PublishersType::of_row).collect()
    }

    /// One type that the publisher has described.
    pub async fn event_type(&self, event_type: &str) -> Result<PublishersType, StoreError> {
        let key = (self.scope.uuid(), event_type.to_owned());
        let row = event_types::Entity::find_by_id(key)
            .one(self.store.read())
            .await?;
        PublishersType::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// The schemas of the publisher's types, as they were within the last second.
    pub async fn event_schemas(&self) -> Result<SchemasByName, StoreError> {
        use event_types::Column;
        let (owner, cache) = (self.scope.uuid(), &self.store.state::<TypeSchemas>().0);
        if let Some((known, _)) = cache.get(&owner) {
            return Ok(known);
        }
        let rows: Vec<(String, Uuid, i64, String)> = event_types::Entity::find()
            .select_only()
            .columns([
                Column::EventType,
                Column::Id,
                Column::Revision,
                Column::Schema,
            ])
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Schema.is_not_null())
            .into_tuple()
            .all(self.store.read())
            .await?;
        let mut bytes = 100;
        let mut known = HashMap::with_capacity(rows.len());
        for (event_type, id, revision, text) in rows {
            bytes += event_type.len() + text.len();
            let schema =
                serde_json::from_str(&text).map_err(|_| corrupt_row("schema of a type"))?;
            let schema = TypeSchema {
                id,
                revision,
                schema,
            };
            known.insert(event_type, schema);
        }
        let known = Arc::new(known);
        let weight = u32::try_from(bytes).unwrap_or(u32::MAX);
        cache.insert(owner, (Arc::clone(&known), weight));
        Ok(known)
    }

    /// Describes a type of the publisher's own, or changes the description. `render` also learns
    /// whether it is new. For a type without a description, no `if_match` is fulfilled.
    pub async fn put_event_type<A>(
        &self,
        context: &Context,
        event_type: &str,
        new: EventTypePut,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&(PublishersType, bool)) -> Answer + Send + Sync,
    {
        let (owner, new) = (self.scope.uuid(), &new);
        let work = |tx: Tx| async move { put(&tx, owner, event_type, new, if_match).await };
        let answer = self.store.administer(context, owner, work, render).await;
        self.store.state::<TypeSchemas>().0.invalidate(&owner);
        answer
    }

    /// Deletes the description of a type. Its events stay, and further ones may be published.
    pub async fn delete_event_type<A>(
        &self,
        context: &Context,
        event_type: &str,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, event_type).await?;
            let row = row.ok_or_else(Problem::not_found)?;
            check_revision(if_match, row.revision)?;
            event_types::Entity::delete_by_id((owner, event_type.to_owned()))
                .exec(tx.db())
                .await?;
            let entry = audit_entry(
                Action::EventTypeDeleted,
                "event_type",
                event_type,
                json!({}),
            );
            Ok(Audited::new((), owner, entry))
        };
        let answer = self.store.administer(context, owner, work, render).await;
        self.store.state::<TypeSchemas>().0.invalidate(&owner);
        answer
    }
}
