//! A publisher with its users and its most common resources.

use serde_json::{Value, json};

use crate::{
    client::{Answer, User},
    consumer::Consumer,
    tools,
};

/// A publisher, from the answer to its creation.
#[derive(Clone)]
pub struct Publisher {
    /// `pub_…`
    pub id: String,
    /// Its slug.
    pub slug: String,
    /// Holds the first admin token.
    pub admin: User,
    /// Holds the first runner token.
    pub runner: User,
    /// The whole answer.
    pub created: Value,
}

impl Publisher {
    /// Creates a publisher as the operator.
    pub async fn create(operator: &User, slug: &str) -> Self {
        let body = json!({"slug": slug, "display_name": format!("The {slug} company")});
        let answer = operator
            .post("/v1/publishers")
            .json(&body)
            .expect(201)
            .await;
        Self {
            id: answer.text("/publisher/id"),
            slug: slug.to_owned(),
            admin: operator.with_token(&answer.text("/tokens/admin/token")),
            runner: operator.with_token(&answer.text("/tokens/runner/token")),
            created: answer.json().clone(),
        }
    }

    /// The identifier of the first credential of a kind.
    #[must_use]
    pub fn credential(&self, kind: &str) -> String {
        let found = &self.created["tokens"][kind]["id"];
        let found = found
            .as_str()
            .or(self.created["secrets"][kind]["id"].as_str());
        found.unwrap().to_owned()
    }

    /// The first secret of a kind.
    #[must_use]
    pub fn secret(&self, kind: &str) -> String {
        let found = self.created["secrets"][kind]["secret"].as_str();
        found.unwrap().to_owned()
    }

    /// Registers a pipeline with the required members only.
    pub async fn pipeline(&self, slug: &str) -> Answer {
        let path = format!("/v1/pipelines/{slug}");
        let body = json!({"display_name": format!("Pipeline {slug}")});
        self.admin.put(&path).json(&body).expect(201).await
    }

    /// Registers an endpoint; returns its identifier.
    pub async fn endpoint(&self, consumer: &Consumer, event_types: &[&str]) -> String {
        let body = json!({"url": consumer.url, "event_types": event_types});
        let call = self.admin.post("/v1/webhook-endpoints").json(&body);
        call.expect(201).await.text("/id")
    }

    /// Stores an API key of an upstream on this machine; returns the account's identifier.
    pub async fn account(&self, name: &str) -> String {
        let body = new_account(name);
        let call = self.admin.post("/v1/accounts").json(&body);
        call.expect(201).await.text("/id")
    }

    /// Creates a train that lends these accounts, the first one first.
    pub async fn train(&self, slug: &str, accounts: &[&str]) -> Answer {
        let body = json!({"slug": slug});
        let call = self.admin.post("/v1/trains").json(&body);
        call.expect(201).await;
        let places = accounts.iter().enumerate();
        let places: Vec<Value> = places
            .map(|(priority, account)| json!({"account_id": account, "priority": priority}))
            .collect();
        let path = format!("/v1/trains/{slug}/accounts");
        self.admin.put(&path).json(&json!(places)).expect(200).await
    }

    /// Creates a token of a train; returns its identifier and a user with it.
    pub async fn train_token(&self, slug: &str) -> (String, User) {
        let path = format!("/v1/trains/{slug}/tokens");
        let made = self.admin.post(&path).expect(201).await;
        (
            made.text("/id"),
            self.admin.with_token(&made.text("/token")),
        )
    }

    /// Creates a run that nobody has claimed; returns its identifier.
    pub async fn run(&self, pipeline: &str) -> String {
        let path = format!("/v1/pipelines/{pipeline}/runs");
        let call = self
            .runner
            .post(&path)
            .json(&json!({"input": {"day": "today"}}));
        call.expect(201).await.text("/id")
    }

    /// Creates a run and claims it at once; returns its identifier and the claim.
    pub async fn claimed_run(&self, pipeline: &str) -> (String, String) {
        let path = format!("/v1/pipelines/{pipeline}/runs");
        let body = json!({"input": {"day": "today"}, "claim": true});
        let answer = self.runner.post(&path).json(&body).expect(201).await;
        (answer.text("/id"), claim_of(answer.json()))
    }

    /// Completes a claimed run.
    pub async fn complete(&self, run: &str, claim: &str) -> Answer {
        let path = format!("/v1/runs/{run}/complete");
        let call = self.runner.post(&path).claim(claim);
        call.json(&json!({"output": {"rows": 42}}))
            .expect(200)
            .await
    }

    /// Creates, claims and completes a run; returns its identifier.
    pub async fn finished_run(&self, pipeline: &str) -> String {
        let (run, claim) = self.claimed_run(pipeline).await;
        self.complete(&run, &claim).await;
        run
    }

    /// The actions in its audit log, oldest first.
    pub async fn actions(&self) -> Vec<String> {
        let items = self.admin.all("/v1/publishers/me/audit").await;
        let actions = items.iter().rev();
        actions
            .map(|item| item["action"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A body that creates an account with a unique API key.
#[must_use]
pub fn new_account(name: &str) -> Value {
    json!({
        "name": name,
        "provider": "local",
        "base_url": "http://127.0.0.1:9",
        "credential_type": "api_key",
        "api_key": format!("sk-test-{}{}", tools::word(), tools::word()),
    })
}

/// The claim token in the answer for a claimed run.
#[must_use]
pub fn claim_of(run: &Value) -> String {
    let token = run.pointer("/claim/token").and_then(Value::as_str);
    token
        .unwrap_or_else(|| panic!("no claim in {run}"))
        .to_owned()
}
