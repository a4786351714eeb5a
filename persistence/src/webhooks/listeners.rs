//! Which endpoints listen to a publisher's events, and which events each of them wants.

use std::collections::{BTreeSet, HashMap};

use domain::{event::Filter, slug::Slug};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _,
};
use uuid::Uuid;

use crate::store::{
    columns::slugs_of,
    db::Tx,
    entity::webhook_endpoints,
    error::{Result, corrupt_row},
    sql, unreadable,
};

/// The listeners of each publisher.
pub(crate) type Listeners = HashMap<Uuid, Vec<Listener>>;

/// An endpoint's filters.
pub(crate) struct Listener {
    pub(crate) endpoint: Uuid,
    pub(crate) ordered: bool,
    types: Vec<Filter>,
    pipelines: Option<Vec<Slug>>,
}

impl Listener {
    fn of_row(
        (endpoint, types, pipelines, ordered): (Uuid, String, Option<String>, bool),
    ) -> Result<Self> {
        let words: Vec<String> =
            serde_json::from_str(&types).map_err(|_| corrupt_row("list of event types"))?;
        let types = words
            .iter()
            .map(|word| Filter::parse(word).ok_or_else(|| corrupt_row("event type filter")))
            .collect::<Result<_>>()?;
        let pipelines = pipelines.as_deref().map(slugs_of).transpose()?;
        Ok(Self {
            endpoint,
            ordered,
            types,
            pipelines,
        })
    }

    /// An endpoint that gets an event whatever its filters are.
    pub(crate) fn alone(endpoint: Uuid, ordered: bool) -> Self {
        Self {
            endpoint,
            ordered,
            types: Vec::new(),
            pipelines: None,
        }
    }

    /// The filters of one endpoint, whether it is enabled or not.
    pub(crate) fn of_endpoint(row: &webhook_endpoints::Model) -> Result<Self> {
        Self::of_row((
            row.id,
            row.event_types.clone(),
            row.pipelines.clone(),
            row.ordered,
        ))
    }

    /// Whether the endpoint wants an event. One that is limited to pipelines only wants events of
    /// those.
    pub(crate) fn wants(&self, event_type: &str, pipeline: Option<&str>) -> bool {
        let in_reach = self.pipelines.as_ref().is_none_or(|some| {
            pipeline.is_some_and(|name| some.iter().any(|slug| slug.as_str() == name))
        });
        in_reach && self.types.iter().any(|filter| filter.matches(event_type))
    }
}

/// Whether the stored filters can be read.
pub(crate) fn check_filters(types: &str, pipelines: Option<&str>) -> Result<()> {
    let pipelines = pipelines.map(str::to_owned);
    Listener::of_row((Uuid::nil(), types.to_owned(), pipelines, false)).map(drop)
}

/// The listeners of each publisher. Their number is reported to the write lane.
pub(crate) async fn listeners(tx: &Tx, publishers: BTreeSet<Uuid>) -> Result<Listeners> {
    let found = read_listeners(tx.db(), &publishers).await?;
    for publisher in publishers {
        tx.heard_by(publisher, found.get(&publisher).map_or(0, Vec::len));
    }
    Ok(found)
}

/// The listeners of each publisher.
pub(crate) async fn read_listeners(
    db: &impl ConnectionTrait,
    publishers: &BTreeSet<Uuid>,
) -> Result<Listeners> {
    use webhook_endpoints::Column;
    let rows: Vec<(Uuid, Uuid, String, Option<String>, bool)> = webhook_endpoints::Entity::find()
        .select_only()
        .columns([
            Column::PublisherId,
            Column::Id,
            Column::EventTypes,
            Column::Pipelines,
            Column::Ordered,
        ])
        .filter(Column::PublisherId.is_in(sql::padded(publishers.iter().copied())))
        .filter(Column::Enabled.eq(true))
        .filter(Column::DeletedAt.is_null())
        .into_tuple()
        .all(db)
        .await?;
    let mut found = Listeners::new();
    for (publisher, endpoint, types, pipelines, ordered) in rows {
        match Listener::of_row((endpoint, types, pipelines, ordered)) {
            Ok(listener) => found.entry(publisher).or_default().push(listener),
            // The endpoint's owner sees the error at the endpoint. Events and other endpoints are
            // not affected.
            Err(error) => unreadable::report("endpoint", publisher, endpoint, &error),
        }
    }
    Ok(found)
}
