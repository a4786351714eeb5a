//! Pipelines: what a publisher's runs are runs of.

use std::{collections::BTreeMap, sync::Arc};

use poem_openapi::{
    Object, OpenApi,
    registry::{MetaSchema, MetaSchemaRef},
};
use serde_json::{Value, json};
use view_derive::{Example, View};

use domain::{
    FaultCode, FieldError, Problem,
    id::PublisherId,
    permission::{PipelinesRead, PipelinesWrite},
    pipeline::{Definition, Subcommand},
    slug::{self, Slug},
};
use persistence::{Answer, Pipeline};

use crate::{
    auth::Caller,
    schemas::Schemas,
    shared::{
        App, EXAMPLE_AT, Idempotency, IfMatch, Listed, NoContent, Ok, OkOrCreated, PageQuery, Path,
        PathValue, Tag, Time, answer, created, destination, nil_id, no_content,
    },
};
use web::{
    contract::child,
    http::{ApiError, Body},
};

/// Longest name of a subcommand, characters.
const SUBCOMMAND_CHARS: usize = 63;

/// An endpoint of the publisher that a run may call through the control plane.
#[derive(Object, View, Clone, Debug, PartialEq, Eq)]
#[oai(rename = "Subcommand", deny_unknown_fields)]
#[view(of = Subcommand)]
pub struct SubcommandBody {
    /// Where it is called: an https URL on a public address.
    #[oai(validator(min_length = 1, max_length = 2048))]
    url: String,
    /// Longest wait for the whole answer, milliseconds.
    #[oai(
        default = "timeout_ms_default",
        validator(minimum(value = "100"), maximum(value = "60000"))
    )]
    timeout_ms: u32,
}

const fn timeout_ms_default() -> u32 {
    30_000
}

const fn lease_seconds_default() -> u32 {
    300
}

const fn max_attempts_default() -> u32 {
    3
}

const fn retention_days_default() -> u32 {
    30
}

/// What a pipeline is. Whatever is left out has its default, also when the pipeline exists.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
#[view(of = Definition)]
#[example(sample().definition.as_ref())]
pub struct PipelineDefinition {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 120))]
    display_name: String,
    /// For people.
    #[oai(nullable, validator(max_length = 1000))]
    description: Option<String>,
    /// JSON Schema (2020-12 unless `$schema` says draft 6, 7 or 2019-09) of a run's input; null
    /// takes anything. At most 64 KiB. References stay within the schema and make no circle;
    /// patterns have no look-around and no back-references, and at most 4096 bytes; a check takes
    /// at most 4000 steps for each value, references resolved and what `unevaluated…` looks at
    /// again counted again, and 1000 for each byte.
    #[oai(nullable, validator(max_properties = 1000))]
    #[view(from = members(of.input_schema.as_ref()))]
    input_schema: Option<BTreeMap<String, Value>>,
    /// The same of a run's output.
    #[oai(nullable, validator(max_properties = 1000))]
    #[view(from = members(of.output_schema.as_ref()))]
    output_schema: Option<BTreeMap<String, Value>>,
    /// By name (`[a-z0-9_-]{1,63}`).
    #[oai(default, validator(max_properties = 50))]
    subcommands: BTreeMap<String, SubcommandBody>,
    /// How long a claim holds, seconds.
    #[oai(
        default = "lease_seconds_default",
        validator(minimum(value = "5"), maximum(value = "86400"))
    )]
    lease_seconds: u32,
    /// How many tries of a run may fail, or lose their lease.
    #[oai(
        default = "max_attempts_default",
        validator(minimum(value = "1"), maximum(value = "100"))
    )]
    max_attempts: u32,
    /// How many of its runs may be held at once; null sets no limit.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "100000")))]
    max_concurrent_runs: Option<u32>,
    /// How long after its creation a run may still be queued, seconds: then it expires. Null sets
    /// no limit.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "31536000")))]
    time_to_live_seconds: Option<u32>,
    /// How long finished runs are kept, days.
    #[oai(
        default = "retention_days_default",
        validator(minimum(value = "1"), maximum(value = "365"))
    )]
    retention_days: u32,
}

impl PipelineDefinition {
    /// Checks what the contract can't say.
    async fn checked(
        self,
        policy: &outbound::Policy,
        schemas: &Schemas,
        publisher: PublisherId,
    ) -> Result<Definition, Problem> {
        let schema_of = |members: Option<BTreeMap<String, Value>>| {
            members.map(|members| Value::Object(members.into_iter().collect()))
        };
        let input_schema = schema_of(self.input_schema);
        let output_schema = schema_of(self.output_schema);
        let placed = [
            ("/input_schema", input_schema.clone()),
            ("/output_schema", output_schema.clone()),
        ];
        let there = placed
            .into_iter()
            .filter_map(|(pointer, schema)| Some((pointer, schema?)));
        let mut faults = schemas.faults(publisher, there.collect(), None).await?;
        let mut refused = Vec::new();
        let mut subcommands = BTreeMap::new();
        for (name, subcommand) in self.subcommands {
            let Some(pointer) = subcommand_pointer(&name, &mut faults) else {
                continue;
            };
            match destination::check(policy, &child(&pointer, "url"), &subcommand.url) {
                Ok(url) => {
                    let timeout_ms = subcommand.timeout_ms;
                    subcommands.insert(name, Subcommand { url, timeout_ms });
                }
                Err(fault) => refused.push(fault),
            }
        }
        destination::refuse(faults, refused)?;
        Ok(Definition {
            display_name: self.display_name,
            description: self.description,
            input_schema,
            output_schema,
            subcommands,
            lease_seconds: self.lease_seconds,
            max_attempts: self.max_attempts,
            max_concurrent_runs: self.max_concurrent_runs,
            time_to_live_seconds: self.time_to_live_seconds,
            retention_days: self.retention_days,
        })
    }
}

/// The slugs of a list at `pointer`, whose form the contract has checked already.
pub(crate) fn slugs(texts: &[String], pointer: &str, faults: &mut Vec<FieldError>) -> Vec<Slug> {
    let mut slugs = Vec::with_capacity(texts.len());
    for (at, text) in texts.iter().enumerate() {
        if let Some(slug) = Slug::parse(text) {
            slugs.push(slug);
        } else {
            let detail = "It is not a pipeline's slug.";
            faults.push(FieldError::new(
                format!("{pointer}/{at}"),
                FaultCode::Pattern,
                detail,
            ));
        }
    }
    slugs
}

/// Where a subcommand stands in the body; a fault instead when it can't be called so.
fn subcommand_pointer(name: &str, faults: &mut Vec<FieldError>) -> Option<String> {
    let fits = (1..=SUBCOMMAND_CHARS).contains(&name.len())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if fits {
        return Some(child("/subcommands", name));
    }
    let pointer = if name.len() <= SUBCOMMAND_CHARS {
        child("/subcommands", name)
    } else {
        "/subcommands".to_owned()
    };
    let detail = "A subcommand's name must match `^[a-z0-9_-]{1,63}$`.";
    faults.push(FieldError::new(pointer, FaultCode::Pattern, detail));
    None
}

/// A pipeline.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Pipeline", example)]
#[view(of = Pipeline)]
#[example(sample())]
pub struct PipelineView {
    /// `pl_…`
    id: String,
    /// Its name in paths.
    slug: String,
    /// Counts changes of the definition. A run keeps the version that it was created with.
    version: i64,
    /// For people.
    #[view(field = definition.display_name)]
    display_name: String,
    /// For people.
    #[oai(nullable)]
    #[view(field = definition.description)]
    description: Option<String>,
    /// JSON Schema of a run's input; null takes anything.
    #[oai(nullable)]
    #[view(from = members(of.definition.input_schema.as_ref()))]
    input_schema: Option<BTreeMap<String, Value>>,
    /// JSON Schema of a run's output; null takes anything.
    #[oai(nullable)]
    #[view(from = members(of.definition.output_schema.as_ref()))]
    output_schema: Option<BTreeMap<String, Value>>,
    /// By name.
    #[view(field = definition.subcommands)]
    subcommands: BTreeMap<String, SubcommandBody>,
    /// How long a claim holds, seconds.
    #[view(field = definition.lease_seconds)]
    lease_seconds: u32,
    /// How many tries of a run may fail, or lose their lease.
    #[view(field = definition.max_attempts)]
    max_attempts: u32,
    /// How many of its runs may be held at once; null sets no limit.
    #[oai(nullable)]
    #[view(field = definition.max_concurrent_runs)]
    max_concurrent_runs: Option<u32>,
    /// How long after its creation a run may still be queued, seconds; null sets no limit.
    #[oai(nullable)]
    #[view(field = definition.time_to_live_seconds)]
    time_to_live_seconds: Option<u32>,
    /// How long finished runs are kept, days.
    #[view(field = definition.retention_days)]
    retention_days: u32,
    /// Since when it hands out no runs; null while it does.
    #[oai(nullable)]
    paused_at: Option<Time>,
    /// When it was registered.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

/// The members of a schema. What is not an object is shown as none.
fn members(schema: Option<&Value>) -> Option<BTreeMap<String, Value>> {
    let members = schema?.as_object()?.iter();
    Some(
        members
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    )
}

/// A pipeline as examples show it.
fn sample() -> Pipeline {
    let archive = Subcommand {
        url: "https://example.com/archive".into(),
        timeout_ms: timeout_ms_default(),
    };
    let definition = Definition {
        display_name: "Nightly import".into(),
        description: Some("Reads the day's files.".into()),
        input_schema: Some(json!({
            "type": "object",
            "required": ["day"],
            "properties": {"day": {"type": "string", "format": "date"}},
        })),
        output_schema: Some(json!({
            "type": "object",
            "properties": {"rows": {"type": "integer", "minimum": 0}},
        })),
        subcommands: BTreeMap::from([("archive".into(), archive)]),
        lease_seconds: lease_seconds_default(),
        max_attempts: max_attempts_default(),
        max_concurrent_runs: None,
        time_to_live_seconds: None,
        retention_days: retention_days_default(),
    };
    Pipeline {
        id: nil_id(),
        slug: "nightly-import".into(),
        version: 1,
        definition: Arc::new(definition),
        paused_at: None,
        revision: 1,
        created_at: EXAMPLE_AT.0,
        updated_at: EXAMPLE_AT.0,
    }
}

/// The slug of a pipeline that may be new, so that a wrong one is not simply absent.
pub struct NewSlug(String);

impl NewSlug {
    fn checked(&self) -> Result<Slug, Problem> {
        Slug::parse(&self.0).ok_or_else(|| {
            let detail = format!("A pipeline's slug must match `{}`.", slug::PATTERN);
            Problem::parameter("/path/slug", detail)
        })
    }
}

impl PathValue for NewSlug {
    fn schema() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            pattern: Some(slug::PATTERN.to_owned()),
            ..MetaSchema::new("string")
        }))
    }

    fn of_path(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

/// The operations on pipelines.
pub struct Pipelines {
    pub(crate) app: Arc<App>,
}

impl Pipelines {
    async fn set_paused(
        &self,
        who: &Caller<PipelinesWrite>,
        slug: &Slug,
        key: Idempotency,
        paused: bool,
    ) -> Result<Ok<PipelineView>, ApiError> {
        let context = who.context_with(key);
        let runs = who.scoped().runs();
        let answered = runs.pause_pipeline(&context, slug.as_str(), paused, shown);
        Ok(answered.await?.into())
    }
}

#[OpenApi(prefix_path = "/v1/pipelines", tag = "Tag::Pipelines")]
impl Pipelines {
    /// Create or update a pipeline
    ///
    /// The body is the whole definition. A definition that differs makes a new version; the same
    /// one again changes nothing.
    #[oai(path = "/:slug", method = "put", operation_id = "put_pipeline")]
    async fn put(
        &self,
        who: Caller<PipelinesWrite>,
        /// The pipeline's slug.
        Path(slug): Path<NewSlug>,
        /// The revision that is to be replaced; `*` for any, but not for a pipeline that is not there.
        if_match: IfMatch,
        body: Body<PipelineDefinition>,
    ) -> Result<OkOrCreated<PipelineView>, ApiError> {
        let slug = slug.checked()?;
        let (app, publisher) = (&self.app, who.publisher());
        let checked = body.0.checked(&app.policy, &app.schemas, publisher);
        let definition = who.request.aside(checked).await??;
        let context = who.context();
        let runs = who.scoped().runs();
        let render = |(pipeline, is_new): &(Pipeline, bool)| {
            if *is_new {
                created(shown(pipeline), format!("/v1/pipelines/{}", pipeline.slug))
            } else {
                shown(pipeline)
            }
        };
        let answer = runs.put_pipeline(&context, slug, definition, if_match.0, render);
        Ok(answer.await?.into())
    }

    /// Get a pipeline
    #[oai(path = "/:slug", method = "get", operation_id = "get_pipeline")]
    async fn get(
        &self,
        who: Caller<PipelinesRead>,
        /// The pipeline's slug.
        Path(slug): Path<Slug>,
    ) -> Result<Ok<PipelineView>, ApiError> {
        let runs = who.scoped().runs();
        let pipeline = runs.pipeline(slug.as_str()).await?;
        Ok(shown(&pipeline).into())
    }

    /// List pipelines
    ///
    /// Newest first. A token that is limited to some pipelines sees only those.
    #[oai(path = "/", method = "get", operation_id = "list_pipelines")]
    async fn list(
        &self,
        who: Caller<PipelinesRead>,
        page: PageQuery,
    ) -> Result<Listed<PipelineView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().runs().pipelines(list.page()?).await?;
        Ok(list.answer(page, |pipeline| PipelineView::from(&pipeline)))
    }

    /// Pause a pipeline
    ///
    /// It hands out no runs until it is resumed. Runs that are held go on, and new ones wait.
    #[oai(
        path = "/:slug/pause",
        method = "post",
        operation_id = "pause_pipeline"
    )]
    async fn pause(
        &self,
        who: Caller<PipelinesWrite>,
        /// The pipeline's slug.
        Path(slug): Path<Slug>,
        key: Idempotency,
    ) -> Result<Ok<PipelineView>, ApiError> {
        self.set_paused(&who, &slug, key, true).await
    }

    /// Resume a pipeline
    #[oai(
        path = "/:slug/resume",
        method = "post",
        operation_id = "resume_pipeline"
    )]
    async fn resume(
        &self,
        who: Caller<PipelinesWrite>,
        /// The pipeline's slug.
        Path(slug): Path<Slug>,
        key: Idempotency,
    ) -> Result<Ok<PipelineView>, ApiError> {
        self.set_paused(&who, &slug, key, false).await
    }

    /// Delete a pipeline
    ///
    /// Its finished runs stay readable until their retention ends; unfinished ones refuse it. The
    /// slug is free at once.
    #[oai(path = "/:slug", method = "delete", operation_id = "delete_pipeline")]
    async fn delete(
        &self,
        who: Caller<PipelinesWrite>,
        /// The pipeline's slug.
        Path(slug): Path<Slug>,
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let runs = who.scoped().runs();
        let answer = runs.delete_pipeline(&context, slug.as_str(), if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }
}

/// A pipeline as it is now.
fn shown(pipeline: &Pipeline) -> Answer {
    answer(200, &PipelineView::from(pipeline)).revision(pipeline.revision)
}

#[cfg(test)]
mod tests {
    use domain::Code;
    use poem_openapi::types::Example;

    use super::*;

    async fn checked(body: PipelineDefinition) -> Result<Definition, Problem> {
        let publisher = nil_id::<PublisherId>();
        let (policy, schemas) = (outbound::Policy::default(), Schemas::new());
        body.checked(&policy, &schemas, publisher).await
    }

    async fn faults_of(body: PipelineDefinition) -> (Code, Vec<(String, String)>) {
        let problem = checked(body).await.unwrap_err();
        let found = problem.errors.into_iter();
        (
            problem.code,
            found.map(|f| (f.pointer, f.code.to_string())).collect(),
        )
    }

    fn with_subcommand(name: &str, url: &str) -> PipelineDefinition {
        let body = SubcommandBody {
            url: url.into(),
            timeout_ms: 1000,
        };
        PipelineDefinition {
            subcommands: BTreeMap::from([(name.to_owned(), body)]),
            ..PipelineDefinition::example()
        }
    }

    #[tokio::test]
    async fn the_example_is_taken() {
        let definition = checked(PipelineDefinition::example()).await.unwrap();
        assert_eq!(
            definition.subcommands["archive"].url,
            "https://example.com/archive"
        );
    }

    #[test]
    fn a_wrong_slug_is_named_where_it_stands() {
        let mut faults = Vec::new();
        assert_eq!(
            slugs(&["a".into(), "B".into()], "/list", &mut faults).len(),
            1
        );
        assert_eq!(faults[0].pointer, "/list/1");
    }

    #[tokio::test]
    async fn every_fault_is_named() {
        let mut body = with_subcommand("Bad/Name", "https://example.com");
        body.input_schema = serde_json::from_value(json!({"type": 3})).unwrap();
        body.output_schema =
            serde_json::from_value(json!({"$ref": "https://example.com"})).unwrap();
        let (code, found) = faults_of(body).await;
        assert_eq!(code, Code::ValidationFailed);
        let found: Vec<_> = found
            .iter()
            .map(|(at, code)| (at.as_str(), code.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("/input_schema/type", "invalid"),
                ("/output_schema/$ref", "not_allowed"),
                ("/subcommands/Bad~1Name", "pattern"),
            ]
        );
        let long = with_subcommand(&"x".repeat(64), "https://example.com");
        let (_, found) = faults_of(long).await;
        assert_eq!(found[0].0, "/subcommands");
    }

    #[tokio::test]
    async fn a_subcommand_goes_only_where_it_may() {
        for url in [
            "http://example.com",
            "https://127.0.0.1",
            "https://u:p@example.com",
        ] {
            let (code, found) = faults_of(with_subcommand("a", url)).await;
            assert_eq!(code, Code::DestinationRefused, "{url}");
            assert_eq!(
                found,
                [("/subcommands/a/url".to_owned(), "not_allowed".to_owned())]
            );
        }
    }
}
