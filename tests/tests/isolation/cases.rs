//! For each operation: what its owner asks, and what a stranger then tries.

use serde_json::{Value, json};
use tests::{new_account, tools::absent};

use super::things::Things;

/// One request, without who sends it.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub path: String,
    pub body: Option<Value>,
    pub claim: Option<String>,
}

/// The same request twice: about a thing of the victim's, and about one that does not exist.
#[derive(Debug)]
pub struct Pair {
    pub theirs: Ask,
    pub absent: Ask,
    /// Whether a stranger must be told that there is no such thing. Otherwise it concerns what
    /// every publisher has, and both must merely be answered alike.
    pub must_be_absent: bool,
}

impl Pair {
    /// Whether a text is one of the names that the two requests ask for.
    pub fn names(&self, text: &str) -> bool {
        let said = |ask: &Ask| {
            let body = ask.body.as_ref().map(Value::to_string).unwrap_or_default();
            ask.path.contains(text) || body.contains(&format!("\"{text}\""))
        };
        text.len() > 8 && (said(&self.theirs) || said(&self.absent))
    }
}

/// What is tried with one operation; the first pair is what its owner does first.
pub struct Target {
    /// What the owner's success is answered with.
    pub status: u16,
    pub probes: Vec<Pair>,
}

/// A request whose path names a thing.
fn of(status: u16, template: &str, theirs: &str, absent: &str) -> Target {
    let ask = |id: &str| Ask {
        path: template.replace("{}", id),
        ..Ask::default()
    };
    let pair = Pair {
        theirs: ask(theirs),
        absent: ask(absent),
        must_be_absent: true,
    };
    Target {
        status,
        probes: vec![pair],
    }
}

/// A request that names nothing.
fn plain(status: u16, path: &str) -> Target {
    let ask = Ask {
        path: path.to_owned(),
        ..Ask::default()
    };
    let pair = Pair {
        theirs: ask.clone(),
        absent: ask,
        must_be_absent: false,
    };
    Target {
        status,
        probes: vec![pair],
    }
}

impl Target {
    /// With this body, whatever is asked for.
    fn body(mut self, body: &Value) -> Self {
        for pair in &mut self.probes {
            pair.theirs.body = Some(body.clone());
            pair.absent.body = Some(body.clone());
        }
        self
    }

    /// With one of two bodies, for what can be made once.
    fn bodies(mut self, theirs: &Value, absent: &Value) -> Self {
        self = self.body(absent);
        self.probes[0].theirs.body = Some(theirs.clone());
        self
    }

    fn claim(mut self, claim: &str) -> Self {
        for pair in &mut self.probes {
            pair.theirs.claim = Some(claim.to_owned());
            pair.absent.claim = Some(claim.to_owned());
        }
        self
    }

    /// A stranger must be told that there is no such thing.
    fn must_be_absent(mut self) -> Self {
        self.probes[0].must_be_absent = true;
        self
    }

    /// What a stranger names may be free to use for it too.
    fn answered_alike(mut self) -> Self {
        for pair in &mut self.probes {
            pair.must_be_absent = false;
        }
        self
    }

    /// One more try: a query that names a thing.
    fn query(mut self, name: &str, theirs: &str, absent: &str) -> Self {
        let path = self.probes[0].theirs.path.clone();
        let ask = |id: &str| Ask {
            path: format!("{path}?{name}={id}"),
            ..Ask::default()
        };
        self.probes.push(Pair {
            theirs: ask(theirs),
            absent: ask(absent),
            must_be_absent: false,
        });
        self
    }

    /// One more try: a body that names a thing, which stands in it as `"{}"`.
    fn naming(mut self, body: &Value, theirs: &str, absent: &str) -> Self {
        let path = self.probes[0].theirs.path.clone();
        let ask = |id: &str| Ask {
            path: path.clone(),
            body: serde_json::from_str(&body.to_string().replace("{}", id)).ok(),
            claim: None,
        };
        self.probes.push(Pair {
            theirs: ask(theirs),
            absent: ask(absent),
            must_be_absent: false,
        });
        self
    }
}

/// The case of an operation; `None` if nobody has written one.
pub fn target(operation: &str, things: &Things) -> Option<Target> {
    operators(operation, things)
        .or_else(|| publishers(operation, things))
        .or_else(|| pipelines(operation, things))
        .or_else(|| runs(operation, things))
        .or_else(|| events(operation, things))
        .or_else(|| webhooks(operation, things))
        .or_else(|| trains(operation, things))
        .or_else(|| members(operation, things))
        .or_else(|| people(operation))
}

fn members(operation: &str, things: &Things) -> Option<Target> {
    let member = |status, template: &str| of(status, template, &things.member, &absent("usr"));
    let invitation =
        |status, template: &str| of(status, template, &things.invitation, &absent("inv"));
    let email = format!("new-{}@example.org", things.pipeline);
    Some(match operation {
        "list_members" => plain(200, "/v1/members"),
        "get_member" | "remove_member" => member(200, "/v1/members/{}"),
        "update_member" => member(200, "/v1/members/{}").body(&json!({"role": "developer"})),
        "list_minted_tokens" => member(200, "/v1/members/{}/minted"),
        "list_invitations" => plain(200, "/v1/invitations"),
        "create_invitation" => {
            plain(201, "/v1/invitations").body(&json!({"email": email, "role": "viewer"}))
        }
        "get_invitation" => invitation(200, "/v1/invitations/{}"),
        "resend_invitation" => invitation(200, "/v1/invitations/{}/resend"),
        "revoke_invitation" => invitation(204, "/v1/invitations/{}"),
        "leave_publisher" => plain(204, "/v1/members/leave"),
        _ => return None,
    })
}

/// What people ask about themselves: it names nothing of a publisher's.
fn people(operation: &str) -> Option<Target> {
    let nobodys = |status, template: &str, kind| of(status, template, &absent(kind), &absent(kind));
    let password = json!({"password": "correct horse battery staple 9"});
    Some(match operation {
        "get_me" => plain(200, "/v1/me"),
        "update_me" => plain(200, "/v1/me").body(&json!({})),
        "list_own_sessions" => plain(200, "/v1/me/sessions"),
        "end_own_session" => nobodys(404, "/v1/me/sessions/{}", "ses"),
        "end_other_sessions" => plain(204, "/v1/me/sessions"),
        "set_own_password" => plain(204, "/v1/me/password").body(&password),
        "remove_own_password" => plain(204, "/v1/me/password"),
        "request_email_change" => {
            plain(202, "/v1/me/email").body(&json!({"email": "me@example.net"}))
        }
        "confirm_email" => plain(400, "/v1/auth/confirm-email").body(&json!({"token": "none"})),
        "list_own_memberships" => plain(200, "/v1/me/memberships"),
        "list_own_invitations" => plain(200, "/v1/me/invitations"),
        "accept_own_invitation" => nobodys(404, "/v1/me/invitations/{}/accept", "inv"),
        "sign_out" => plain(204, "/v1/auth/sign-out"),
        _ => return None,
    })
}

fn operators(operation: &str, things: &Things) -> Option<Target> {
    let one = |status, template: &str| {
        of(status, template, &things.publisher.id, &absent("pub")).answered_alike()
    };
    let name = json!({"display_name": "Another name"});
    Some(match operation {
        "create_publisher" => {
            let slug = format!("new-{}", things.pipeline);
            plain(201, "/v1/publishers").body(&json!({"slug": slug, "display_name": "New"}))
        }
        "list_publishers" => plain(200, "/v1/publishers"),
        "get_publisher" => one(200, "/v1/publishers/{}"),
        "update_publisher" => one(200, "/v1/publishers/{}").body(&name),
        "delete_publisher" => {
            let template = format!("/v1/publishers/{{}}?confirm={}", things.publisher.slug);
            one(204, &template)
        }
        "suspend_publisher" => one(200, "/v1/publishers/{}/suspend"),
        "resume_publisher" => one(200, "/v1/publishers/{}/resume").body(&json!({})),
        "mint_admin_token" => one(201, "/v1/publishers/{}/tokens/admin").body(&json!({})),
        "list_operator_audit" => plain(200, "/v1/audit"),
        "list_jobs" => plain(200, "/v1/jobs"),
        _ => return None,
    })
}

fn publishers(operation: &str, things: &Things) -> Option<Target> {
    let own = "/v1/publishers/me";
    let token = format!("{own}/tokens/runner/{{}}");
    let limited = json!({"pipelines": ["{}"]});
    let (pipeline, nothing) = (
        things.pipeline.as_str(),
        format!("gone-{}", things.pipeline),
    );
    Some(match operation {
        "get_own_publisher" => plain(200, own),
        "update_own_publisher" => plain(200, own).body(&json!({"display_name": "Same"})),
        "get_usage" => plain(200, &format!("{own}/usage")),
        "list_credentials" => plain(200, &format!("{own}/tokens")),
        "mint_credential" => plain(201, &format!("{own}/tokens/runner"))
            .body(&json!({"name": "one more"}))
            .naming(&limited, pipeline, &nothing),
        "rotate_credentials" => {
            plain(200, &format!("{own}/tokens/subcommand_bearer/rotate")).body(&json!({}))
        }
        "rotate_credential" => of(
            200,
            &format!("{token}/rotate"),
            &things.token_id,
            &absent("tok"),
        )
        .body(&json!({})),
        "delete_credential" => of(204, &token, &things.token_id, &absent("tok")),
        "list_audit" => plain(200, &format!("{own}/audit"))
            .query("target", &things.endpoint, &absent("ep"))
            .query(
                "actor",
                &things.publisher.credential("admin"),
                &absent("tok"),
            ),
        "export_audit" => plain(200, &format!("{own}/audit/export")),
        "verify_audit" => plain(200, &format!("{own}/audit/verify")),
        _ => return None,
    })
}

fn pipelines(operation: &str, things: &Things) -> Option<Target> {
    let nothing = format!("gone-{}", things.pipeline);
    let one = |status, slug: &str| of(status, "/v1/pipelines/{}", slug, &nothing);
    Some(match operation {
        "list_pipelines" => plain(200, "/v1/pipelines"),
        "get_pipeline" => one(200, &things.pipeline),
        // A slug belongs to its publisher: a stranger may have the same one, and makes its own.
        "put_pipeline" => one(200, &things.pipeline)
            .body(&json!({"display_name": "Another name"}))
            .answered_alike(),
        "pause_pipeline" => of(200, "/v1/pipelines/{}/pause", &things.pipeline, &nothing),
        "resume_pipeline" => of(200, "/v1/pipelines/{}/resume", &things.pipeline, &nothing),
        "delete_pipeline" => one(204, &things.idle_pipeline),
        _ => return None,
    })
}

fn runs(operation: &str, things: &Things) -> Option<Target> {
    let nothing = format!("gone-{}", things.pipeline);
    let one = |status, template: &str, id: &str| of(status, template, id, &absent("run"));
    Some(match operation {
        "create_run" => of(201, "/v1/pipelines/{}/runs", &things.pipeline, &nothing)
            .body(&json!({"input": {"by": "somebody"}})),
        "list_runs" => plain(200, "/v1/runs")
            .query("pipeline", &things.pipeline, &nothing)
            .query(
                "external_id",
                &things.external_id,
                &format!("gone-{}", things.external_id),
            ),
        "get_run" => one(200, "/v1/runs/{}", &things.queued),
        "list_run_timeline" => one(200, "/v1/runs/{}/timeline", &things.queued),
        // One that goes on would keep its owner waiting.
        "stream_run" => one(200, "/v1/runs/{}/stream", &things.finished),
        "listen" => plain(200, "/v1/listen?seconds=1"),
        "cancel_run" => one(200, "/v1/runs/{}/cancel", &things.queued),
        "cancel_runs" => plain(200, "/v1/runs/cancel")
            .body(&json!({"pipeline": things.idle_pipeline}))
            .naming(&json!({"pipeline": "{}"}), &things.pipeline, &nothing)
            .naming(
                &json!({"external_id": "{}"}),
                &things.external_id,
                &format!("gone-{}", things.external_id),
            ),
        "claim_runs" => plain(200, "/v1/runs/claim")
            .body(&json!({"max": 1, "pipelines": [things.idle_pipeline]}))
            .naming(&json!({"pipelines": ["{}"]}), &things.pipeline, &nothing),
        "heartbeat_run" => one(200, "/v1/runs/{}/heartbeat", &things.running)
            .body(&json!({"progress": 1}))
            .claim(&things.claim),
        "release_run" => one(200, "/v1/runs/{}/release", &things.running).claim(&things.claim),
        "complete_run" => one(200, "/v1/runs/{}/complete", &things.running)
            .body(&json!({"output": {}}))
            .claim(&things.claim),
        "call_subcommand" => one(200, "/v1/runs/{}/subcommands/archive", &things.running)
            .body(&json!({"file": "a.csv"}))
            .claim(&things.claim),
        "fail_run" => one(200, "/v1/runs/{}/fail", &things.running)
            .body(&json!({"error": {"message": "no"}}))
            .claim(&things.claim),
        _ => return None,
    })
}

fn events(operation: &str, things: &Things) -> Option<Target> {
    let nothing = format!("gone-{}", things.pipeline);
    let own_type = format!("{}.gone", things.event_type);
    Some(match operation {
        "list_event_types" => plain(200, "/v1/event-types"),
        // A type belongs to its publisher: a stranger may describe the same one.
        "put_event_type" => of(200, "/v1/event-types/{}", &things.event_type, &own_type)
            .body(&json!({"description": "Another one"}))
            .answered_alike(),
        "get_event_type" => of(200, "/v1/event-types/{}", &things.event_type, &own_type),
        "delete_event_type" => of(204, "/v1/event-types/{}", &things.event_type, &own_type),
        "publish_events" => plain(202, "/v1/events")
            .body(&json!({"type": "none.such", "data": {}}))
            .naming(
                &json!({"type": "none.such", "data": {}, "pipeline": "{}"}),
                &things.pipeline,
                &nothing,
            )
            .naming(
                &json!({"type": "none.such", "data": {}, "external_id": "{}"}),
                &things.published,
                &format!("gone-{}", things.published),
            ),
        "list_events" => plain(200, "/v1/events"),
        "get_event" => of(200, "/v1/events/{}", &things.event, &absent("evt")),
        _ => return None,
    })
}

fn webhooks(operation: &str, things: &Things) -> Option<Target> {
    let endpoint = |status, template: &str| of(status, template, &things.endpoint, &absent("ep"));
    let delivery = |status, template: &str| of(status, template, &things.delivery, &absent("dlv"));
    let new = json!({"url": "http://127.0.0.1:9/hook", "event_types": ["none.such"]});
    let mut filtered = new.clone();
    filtered["pipelines"] = json!(["{}"]);
    let nothing = format!("gone-{}", things.pipeline);
    let replay = |status, rest: &str| {
        let template = format!(
            "/v1/webhook-endpoints/{}/replays/{{}}{rest}",
            things.endpoint
        );
        of(status, &template, &things.replay, &absent("rpl"))
    };
    Some(match operation {
        "list_webhook_endpoints" => plain(200, "/v1/webhook-endpoints"),
        "create_webhook_endpoint" => plain(201, "/v1/webhook-endpoints").body(&new).naming(
            &filtered,
            &things.pipeline,
            &nothing,
        ),
        "get_webhook_endpoint" => endpoint(200, "/v1/webhook-endpoints/{}"),
        "update_webhook_endpoint" => {
            endpoint(200, "/v1/webhook-endpoints/{}").body(&json!({"enabled": false}))
        }
        "delete_webhook_endpoint" => endpoint(204, "/v1/webhook-endpoints/{}"),
        "test_webhook_endpoint" => endpoint(202, "/v1/webhook-endpoints/{}/test"),
        "enable_webhook_endpoint" => {
            endpoint(200, "/v1/webhook-endpoints/{}/enable").body(&json!({}))
        }
        "get_webhook_endpoint_stats" => endpoint(200, "/v1/webhook-endpoints/{}/stats"),
        "list_replays" => endpoint(200, "/v1/webhook-endpoints/{}/replays"),
        "start_replay" => endpoint(202, "/v1/webhook-endpoints/{}/replays")
            .body(&json!({"since": "2026-01-01T00:00:00Z", "event_types": ["none.such"]})),
        "get_replay" => replay(200, ""),
        "cancel_replay" => replay(200, "/cancel"),
        "list_endpoint_secrets" => endpoint(200, "/v1/webhook-endpoints/{}/secrets"),
        "mint_endpoint_secret" => endpoint(201, "/v1/webhook-endpoints/{}/secrets"),
        "rotate_endpoint_secrets" => {
            endpoint(200, "/v1/webhook-endpoints/{}/secrets/rotate").body(&json!({}))
        }
        "delete_endpoint_secret" => {
            let template = format!("/v1/webhook-endpoints/{}/secrets/{{}}", things.endpoint);
            of(204, &template, &things.endpoint_secret, &absent("sec"))
        }
        // Public: the name is the permission.
        "get_webhook_keys" => of(200, "/v1/webhook-keys/{}", &things.key_set, &absent("wks")),
        "list_deliveries" => plain(200, "/v1/deliveries")
            .query("endpoint", &things.endpoint, &absent("ep"))
            .query("event", &things.event, &absent("evt")),
        "get_delivery" => delivery(200, "/v1/deliveries/{}"),
        "retry_delivery" => delivery(200, "/v1/deliveries/{}/retry"),
        _ => return None,
    })
}

fn trains(operation: &str, things: &Things) -> Option<Target> {
    let account = |status, template: &str, id: &str| of(status, template, id, &absent("acc"));
    let nothing = format!("gone-{}", things.train);
    let train = |status, template: &str| of(status, template, &things.train, &nothing);
    let slug = format!("new-{}", things.train);
    let other = format!("other-{}", things.train);
    let place = json!([{"account_id": "{}", "priority": 0}]);
    Some(match operation {
        "list_accounts" => plain(200, "/v1/accounts"),
        // Names and slugs belong to their publisher: a stranger may have the same ones.
        "create_account" => plain(201, "/v1/accounts")
            .bodies(&new_account(&slug), &new_account(&nothing))
            .naming(&new_account("{}"), &things.train, &other),
        "get_account" | "delete_account" => account(200, "/v1/accounts/{}", &things.account),
        "update_account" => {
            account(200, "/v1/accounts/{}", &things.account).body(&json!({"enabled": false}))
        }
        "replace_account" => {
            account(201, "/v1/accounts/{}/replace", &things.spare_account).body(&new_account(&slug))
        }
        "refresh_account" => account(200, "/v1/accounts/{}/refresh", &things.oauth_account),
        "end_account_cooldown" => account(200, "/v1/accounts/{}/end-cooldown", &things.account)
            .body(&json!({"model": "any"})),
        "refresh_accounts" => plain(200, "/v1/accounts/refresh").body(&json!({"dry_run": true})),
        "start_oauth_login" => {
            let login = |replaces: &str| {
                let mut body = things.tokens.login_body(&slug);
                body["replaces"] = json!(replaces);
                body
            };
            plain(200, "/v1/accounts/oauth/start")
                .bodies(&login(&things.spare_account), &login(&absent("acc")))
                .must_be_absent()
        }
        "finish_oauth_login" => {
            let finish = |state: &str| json!({"state": state, "code": "good"});
            plain(201, "/v1/accounts/oauth/finish")
                .bodies(&finish(&things.login_state), &finish(&"x".repeat(43)))
                .must_be_absent()
        }
        "list_trains" => plain(200, "/v1/trains"),
        "create_train" => plain(201, "/v1/trains")
            .bodies(&json!({"slug": slug}), &json!({"slug": nothing}))
            .naming(&json!({"slug": "{}"}), &things.train, &other),
        "get_train" => train(200, "/v1/trains/{}"),
        "update_train" => train(200, "/v1/trains/{}").body(&json!({"sticky": true})),
        "delete_train" => train(204, "/v1/trains/{}"),
        "list_train_tokens" => train(200, "/v1/trains/{}/tokens"),
        "mint_train_token" => train(201, "/v1/trains/{}/tokens").body(&json!({"name": "more"})),
        "delete_train_token" => {
            let template = format!("/v1/trains/{}/tokens/{{}}", things.train);
            of(204, &template, &things.train_token_id, &absent("tok"))
        }
        "resolve" => plain(200, "/v1/resolve").body(&json!({})).naming(
            &json!({"exclude": ["{}"]}),
            &things.account,
            &absent("acc"),
        ),
        "report" => {
            let of = |id: &str| json!({"account_id": id, "outcome": "rate_limited"});
            let mut target = plain(204, "/v1/resolve/report");
            target.probes[0].theirs.body = Some(of(&things.account));
            target.probes[0].absent.body = Some(of(&absent("acc")));
            target.probes[0].must_be_absent = true;
            target
        }
        forward if forward.starts_with("forward_auth_") => plain(200, "/v1/forward-auth/train"),
        "set_train_accounts" => train(200, "/v1/trains/{}/accounts")
            .body(&json!([]))
            .naming(&place, &things.account, &absent("acc")),
        _ => return None,
    })
}
