//! The HTTP surface: one folder a plane and one module a resource, over the
//! ground of every surface in [`web`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use poem::{Endpoint, EndpointExt as _, Response, endpoint::BoxEndpoint, http::Method};
use poem_openapi::{
    OpenApi, OpenApiService,
    registry::{MetaApi, Registry},
};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use domain::{permits::Permits, token::TokenHash};
use persistence::Store;
use upstream::Refresher;

pub mod auth;
pub mod identity;
pub mod operations;
pub mod publishers;
pub mod shared;
pub mod trains;

#[cfg(test)]
mod bounds;
mod problems;
mod runs;
mod schemas;
mod webhooks;

use identity::{invitations, me, members, sign_in};
use operations::{audit, health, jobs};
use problems::PROBLEMS;
use publishers::{credentials, publisher};
use runs::{pipelines, run, subcommands};
use shared::App;
use trains::{accounts, resolve, train, train_tokens};
use web::{
    contract::{self, Contract, complete},
    docs,
    http::{PublicOrigin, RateLimits, RateSettings, StackOptions, wrap},
};
use webhooks::{deliveries, endpoint_secrets, endpoints, event_types, events, listen, replays};

/// What the surface is made of.
pub struct Deps {
    /// What [`compiled_contract`] made.
    pub contract: Contract,
    /// The store.
    pub store: Store,
    /// How people get in.
    pub people: ::identity::Service,
    /// Which URLs a publisher may name.
    pub policy: outbound::Policy,
    /// Who refreshes accounts.
    pub refresher: Refresher,
    /// The longest that a claim waits.
    pub claim_wait_max: Duration,
    /// The operator's tokens: one, or two during a rotation.
    pub bootstrap: Vec<TokenHash>,
    /// Who may ask how often.
    pub rates: RateSettings,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Where requests are worked on; wait for it at shutdown, before the store is closed.
    pub tasks: TaskTracker,
    /// Whether deliveries are being made.
    pub dispatcher_healthy: health::Probe,
    /// Pages for people, if there are any.
    pub pages: Option<web::http::Pages>,
}

/// Every resource. One adds itself here and in [`operations`].
type Operations = (
    publisher::Publishers,
    publisher::Own,
    credentials::Credentials,
    audit::OwnLog,
    audit::OperatorLog,
    audit::Audit,
    jobs::JobList,
    pipelines::Pipelines,
    run::Runs,
    run::timeline::Timelines,
    subcommands::Subcommands,
    (event_types::EventTypesApi, events::Events),
    Webhooks,
    Lending,
    People,
);

/// What is about deliveries. poem-openapi takes at most sixteen at a time.
type Webhooks = (
    endpoints::Endpoints,
    endpoint_secrets::EndpointSecretsApi,
    replays::Replays,
    deliveries::Deliveries,
    listen::Listen,
);

/// What is lent, by what, and to whom.
type Lending = (
    accounts::All,
    train::Trains,
    train_tokens::TrainTokens,
    resolve::Resolve,
    resolve::forward::ForwardAuth,
);

/// What is about people.
type People = (
    sign_in::SignIn,
    me::Me,
    members::Members,
    invitations::Invitations,
);

fn operations(app: &Arc<App>) -> Operations {
    let app = || Arc::clone(app);
    (
        publisher::Publishers,
        publisher::Own,
        credentials::Credentials,
        audit::OwnLog,
        audit::OperatorLog,
        audit::Audit { app: app() },
        jobs::JobList,
        pipelines::Pipelines { app: app() },
        run::Runs { app: app() },
        run::timeline::Timelines::new(app()),
        subcommands::Subcommands::new(app()),
        (
            event_types::EventTypesApi { app: app() },
            events::Events { app: app() },
        ),
        (
            endpoints::Endpoints { app: app() },
            endpoint_secrets::EndpointSecretsApi { app: app() },
            replays::Replays,
            deliveries::Deliveries,
            listen::Listen::new(app()),
        ),
        (
            accounts::all(&app()),
            train::Trains { app: app() },
            train_tokens::TrainTokens,
            resolve::Resolve { app: app() },
            resolve::forward::ForwardAuth { app: app() },
        ),
        (
            sign_in::SignIn,
            me::Me,
            members::Members,
            invitations::Invitations { app: app() },
        ),
    )
}

const TITLE: &str = "Stationmaster";
const DESCRIPTION: &str = "A control plane for publishers: runs that workers claim, signed \
    webhooks that arrive, credentials that rotate. Every publisher is kept apart from every other; \
    the token says whose things a request is about.\n\n\
    Errors are `application/problem+json` (RFC 9457) with a `code` to branch on. Lists come in \
    parts: follow `next_cursor`. A request with an `Idempotency-Key` can be repeated without \
    harm. `ETag` and `If-Match` keep two writers from overwriting each other.";

/// The operations without anything behind them, for their documentation.
struct Described;

impl OpenApi for Described {
    fn meta() -> Vec<MetaApi> {
        Operations::meta()
    }

    fn register(registry: &mut Registry) {
        Operations::register(registry);
    }

    fn add_routes(self, _: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {}
}

fn service<T: OpenApi>(operations: T) -> OpenApiService<T, ()> {
    OpenApiService::new(operations, TITLE, "1").description(DESCRIPTION)
}

/// The contract as it is published: an OpenAPI 3.1 document. Needs no store.
#[must_use]
pub fn openapi_document() -> Value {
    let mut document = complete(&service(Described).spec(), PROBLEMS);
    describe_headers(&mut document);
    document
}

/// [`openapi_document`] as it is checked in.
#[must_use]
pub fn openapi_text() -> String {
    contract::text(&openapi_document())
}

/// The reference for people who read files.
#[must_use]
pub fn reference_markdown() -> String {
    contract::reference_markdown(&openapi_document())
}

/// Which kind of token, and which people, may do what.
#[must_use]
pub fn access_markdown() -> String {
    let mut page = String::from(
        "# Who may do what\n\nWritten from the contract by `stationmaster openapi`; a test fails \
         when it is out of date.\n\nA caller is a token, or a person who is signed in. `viewer`, \
         `developer`, `admin` and `owner` are the roles of a member in the publisher that the \
         request names; `staff` are people with the operator's rights. `recent` means: only if the \
         person has signed in within the last five minutes, else 403 `recent_sign_in_required`. \
         [auth.md](auth.md) describes both.\n\n\
         The caller is checked before anything else of a request is looked at. Tokens of other \
         kinds get 403 `wrong_token_kind`, members with a lower role 403 `role_too_low`. \
         `/healthz`, `/readyz`, `/openapi.json` and `/docs` need no credential.\n\n",
    );
    page.push_str(&contract::access_table_markdown(&openapi_document()));
    page
}

/// Documents the headers that follow from an operation's shape: `ETag` on whatever has a revision,
/// `Idempotent-Replayed` where a key is taken.
fn describe_headers(document: &mut Value) {
    let revised = revised_schemas(document);
    for operation in operations_of(document) {
        let keyed = has_parameter(operation, "Idempotency-Key");
        let answers = operation["responses"].as_object_mut();
        for (status, answer) in answers.into_iter().flatten() {
            if !status.starts_with('2') {
                continue;
            }
            let schema = &answer["content"]["application/json"]["schema"]["$ref"];
            let etag = schema.as_str().is_some_and(|name| revised.contains(name));
            for (due, name, text) in [
                (etag, "ETag", "The thing's revision, for `If-Match`."),
                (
                    keyed,
                    "Idempotent-Replayed",
                    "`true` when this is the kept answer to an earlier request with the same \
                     `Idempotency-Key`; absent otherwise.",
                ),
            ] {
                if due {
                    answer["headers"][name] =
                        json!({"description": text, "schema": {"type": "string"}});
                }
            }
        }
    }
}

fn operations_of(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths
        .filter_map(|(_, item)| item.as_object_mut())
        .flat_map(|item| item.values_mut())
}

fn has_parameter(operation: &Value, name: &str) -> bool {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters.into_iter().any(|p| p["name"] == name)
}

/// Schemas of answers with a revision that no path with `If-Match` answers with.
const REVISED: [&str; 3] = ["CreatedPublisher", "CreatedRunView", "Run"];

/// The schemas of answers that have an `ETag`: [`REVISED`], and those on paths where some
/// operation takes `If-Match`.
fn revised_schemas(document: &Value) -> HashSet<String> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let known = |name: &&str| format!("#/components/schemas/{name}");
    let mut found: HashSet<String> = REVISED.iter().map(known).collect();
    for (_, item) in paths {
        let operations = || item.as_object().into_iter().flatten();
        if !operations().any(|(_, operation)| has_parameter(operation, "If-Match")) {
            continue;
        }
        // What a deletion answers has no revision any more.
        for (_, operation) in operations().filter(|(method, _)| *method != "delete") {
            for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                let schema = &answer["content"]["application/json"]["schema"]["$ref"];
                if status.starts_with('2') {
                    found.extend(schema.as_str().map(str::to_owned));
                }
            }
        }
    }
    found
}

/// The published contract, compiled. Takes a good part of the start, and nothing else of it.
///
/// # Errors
/// When it doesn't compile: a mistake in this program.
pub fn compiled_contract() -> Result<Contract, String> {
    Contract::new(openapi_document())
}

/// The whole application.
#[must_use]
pub fn app(deps: Deps) -> impl Endpoint<Output = Response> + 'static {
    let contract = Arc::new(deps.contract);
    let limits = Arc::new(RateLimits::new(deps.rates));
    let app = Arc::new(App {
        store: deps.store,
        origin: PublicOrigin::new(deps.people.settings().public_origin.clone()),
        people: deps.people,
        limits: Arc::clone(&limits),
        bootstrap: deps.bootstrap,
        policy: deps.policy,
        refresher: deps.refresher,
        claim_wait_max: deps.claim_wait_max,
        tasks: deps.tasks.clone(),
        outside: Permits::new(shared::OUTSIDE),
        schemas: schemas::Schemas::new(),
        notices: shared::Notices::default(),
    });
    // Not among the tasks that a shutdown waits for: it never ends.
    tokio::spawn(limits.keep_small());
    let service = service(operations(&app)).data(Arc::clone(&app));
    let mut options = StackOptions::new(contract);
    options.pages = deps.pages.as_ref().map(|pages| pages.problems);
    let docs = docs::attach(service, &options.contract);
    let pages = web::http::pages::attach(docs, deps.pages);
    let health = health::attach(pages, app, deps.dispatcher_healthy);
    options.trusted_proxies = deps.trusted_proxies;
    options.tasks = deps.tasks;
    wrap(health, options)
}

#[cfg(test)]
mod tests {
    use domain::permission::Permission;

    use super::*;

    #[test]
    fn the_contract_lacks_nothing() {
        assert_eq!(contract::audit(&openapi_document()), Vec::<String>::new());
    }

    /// Operations that need no credential. Others say so by their guard, [`auth::Visitor`].
    const PUBLIC: [&str; 1] = ["get_webhook_keys"];

    /// Each operation with its identifier.
    fn all(document: &Value) -> Vec<(&str, &Value)> {
        let paths = document["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|item| item.as_object().unwrap().values());
        operations
            .map(|operation| (operation["operationId"].as_str().unwrap(), operation))
            .collect()
    }

    /// The schemes that the draft names for each operation: its permission among them.
    fn schemes() -> HashMap<String, Vec<String>> {
        let draft = serde_json::from_str(&service(Described).spec()).unwrap();
        let named = all(&draft).into_iter().map(|(id, operation)| {
            let names = operation["security"].as_array().into_iter().flatten();
            let names = names.flat_map(|one| one.as_object().unwrap().keys());
            (id.to_owned(), names.cloned().collect())
        });
        named.collect()
    }

    fn permissions() -> HashMap<String, Vec<Permission>> {
        let named = schemes().into_iter().map(|(id, names)| {
            let permissions = names.iter().filter_map(|name| Permission::parse(name));
            (id, permissions.collect())
        });
        named.collect()
    }

    #[test]
    fn each_operation_has_one_permission_and_each_permission_an_operation() {
        let (mut used, schemes) = (HashSet::new(), schemes());
        for (id, permissions) in permissions() {
            let visitors = schemes[&id].iter().any(|name| name == contract::VISITOR);
            let open = visitors || PUBLIC.contains(&id.as_str());
            assert_eq!(
                permissions.len(),
                usize::from(!open),
                "{id}: {permissions:?}"
            );
            used.extend(permissions);
        }
        for permission in Permission::ALL {
            assert!(used.contains(permission), "{}", permission.as_str());
        }
    }

    /// Whether an answer has a member `token` or `secret`.
    fn shows_a_secret(value: &Value) -> bool {
        match value {
            Value::Array(items) => items.iter().any(shows_a_secret),
            Value::Object(members) => members.iter().any(|(name, value)| {
                matches!(name.as_str(), "token" | "secret") || shows_a_secret(value)
            }),
            _ => false,
        }
    }

    #[test]
    fn operations_that_make_credentials_have_permissions_of_their_own() {
        const MAKE: [Permission; 2] = [Permission::CredentialsWrite, Permission::PublishersMint];
        // A run's claim ends with the run.
        const SHORT_LIVED: [&str; 2] = ["create_run", "claim_runs"];
        let (document, permissions) = (openapi_document(), permissions());
        let mut shown = Vec::new();
        for (id, operation) in all(&document) {
            let answers = operation["responses"].as_object().unwrap().iter();
            let answers = answers.filter(|(status, _)| status.starts_with('2'));
            let bodies =
                answers.flat_map(|(_, answer)| answer["content"].as_object().into_iter().flatten());
            if bodies
                .map(|(_, media)| &media["example"])
                .any(shows_a_secret)
            {
                shown.push(id);
            }
        }
        shown.retain(|id| !SHORT_LIVED.contains(id));
        assert_eq!(shown.len(), 9, "{shown:?}");
        for id in shown {
            let permission = permissions[id][0];
            assert!(permission.needs_recent_sign_in(), "{id}");
            // A listener's secret ends with its token, or with the session.
            assert!(MAKE.contains(&permission) || id == "listen", "{id}");
        }
    }

    #[test]
    fn the_contract_compiles() {
        Contract::new(openapi_document()).unwrap();
    }

    #[test]
    fn what_is_checked_in_is_what_the_code_says() {
        for (path, text) in [
            ("openapi/stationmaster.json", openapi_text()),
            ("docs/reference.md", reference_markdown()),
            ("docs/access.md", access_markdown()),
        ] {
            let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("..")
                .join(path);
            let kept = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(
                kept == text,
                "{path} is out of date: write it anew with `stationmaster openapi`"
            );
        }
    }
}
