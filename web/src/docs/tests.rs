use serde_json::Value;

use super::*;
use crate::{
    contract::complete,
    probe::TestClient,
    sample::{self, OPERATIONS},
};

fn client() -> TestClient<impl Endpoint> {
    let document = complete(&sample::service().spec(), OPERATIONS);
    let contract = Arc::new(Contract::new(document).unwrap());
    let app = attach(sample::service(), &contract);
    TestClient::new(crate::http::wrap(
        app,
        crate::http::StackOptions::new(contract),
    ))
    .default_header("host", "x")
}

async fn page(path: &str) -> (Response, String) {
    let mut response = client().get(path).send().await.0;
    assert_eq!(response.status(), 200, "{path}");
    let text = response.take_body().into_string().await.unwrap();
    (response, text)
}

#[tokio::test]
async fn the_console_loads_only_from_here() {
    let (response, html) = page("/docs").await;
    let policy = response.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self';"));
    assert!(
        !html.contains("http://") && !html.contains("https://"),
        "{html}"
    );
    for quoted in html.split('"').filter(|part| part.starts_with("/docs/")) {
        let (response, _) = page(quoted).await;
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    }
    assert!(page("/docs/console.js").await.1.contains("SwaggerUIBundle"));
    assert!(page("/docs/console.css").await.1.contains(".swagger-ui"));
    assert!(
        page("/docs/start.js")
            .await
            .1
            .contains("validatorUrl: null")
    );
}

#[tokio::test]
async fn the_document_is_served_as_it_is_checked_in() {
    let (response, text) = page("/openapi.json").await;
    assert_eq!(response.header("content-type"), Some("application/json"));
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(crate::contract::text(&document), text);
    let etag = response.header("etag").unwrap().to_owned();
    let again = client()
        .get("/openapi.json")
        .header("if-none-match", &etag)
        .send()
        .await
        .0;
    assert_eq!(again.status(), 304);
    assert_eq!(again.header("etag"), Some(etag.as_str()));
    let client = client();
    let several = client
        .get("/openapi.json")
        .header("if-none-match", format!("\"x\", W/{etag}"));
    assert_eq!(several.send().await.0.status(), 304);
}

#[tokio::test]
async fn every_problem_has_an_anchor() {
    let (_, html) = page("/docs/problems").await;
    for code in Code::ALL {
        assert!(html.contains(&format!("<section id=\"{code}\">")), "{code}");
    }
    assert!(html.contains("<code>Retry-After</code>") && !html.contains('`'));
}

#[tokio::test]
async fn the_api_is_behind_the_pages() {
    let client = client();
    assert_eq!(client.get("/v1/ping").send().await.0.status(), 200);
    assert_eq!(client.get("/docs/nothing").send().await.0.status(), 404);
    let refused = client.post("/docs").send().await.0;
    assert_eq!(
        (refused.status().as_u16(), refused.header("allow")),
        (405, Some("GET, HEAD"))
    );
}
