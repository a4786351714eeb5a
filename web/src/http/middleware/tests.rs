use std::sync::atomic::{AtomicUsize, Ordering};

use poem::{Body, endpoint::make, http::StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;

use domain::permits::Bounds;

use super::*;
use crate::{
    contract::complete,
    http::{RateLimits, limit::RateSettings},
    probe::{TestClient, TestResponse},
    sample::{self, OPERATIONS},
};

fn options() -> StackOptions {
    let document = complete(&sample::service().spec(), OPERATIONS);
    StackOptions::new(Arc::new(Contract::new(document).unwrap()))
}

fn client() -> TestClient<impl Endpoint> {
    client_of(wrap(sample::service(), options()))
}

fn client_of<E: Endpoint>(stack: E) -> TestClient<E> {
    TestClient::new(stack).default_header("host", "x")
}

/// Room for one request at work.
fn one_place() -> StackOptions {
    let bounds = |total| Bounds {
        total,
        per_owner: total,
    };
    StackOptions {
        shares: Arc::new(Shares::new(bounds(1), bounds(9), Duration::from_millis(20))),
        ..options()
    }
}

async fn enter(request: &Request) -> Result<()> {
    let context = RequestContext::of(request)?;
    Ok(context.enter(Owner::Operator).await?)
}

async fn problem(response: TestResponse) -> (u16, Value) {
    assert_eq!(response.0.header("content-type"), Some(error::PROBLEM_JSON));
    assert_eq!(response.0.header("x-content-type-options"), Some("nosniff"));
    let id = response.0.header("x-request-id").unwrap().to_owned();
    let status = response.0.status().as_u16();
    let body: Value = response.0.into_body().into_json().await.unwrap();
    assert_eq!(body["request_id"], json!(id));
    assert_eq!(body["status"], json!(status));
    (status, body)
}

#[tokio::test]
async fn an_answer_carries_the_request_identifier_and_no_charset() {
    let answer = client()
        .get("/v1/ping")
        .header("x-request-id", "mine-1")
        .send()
        .await
        .0;
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let body: Value = answer.into_body().into_json().await.unwrap();
    assert_eq!(body["changes"], "mine-1", "the handler knows it too");
}

#[tokio::test]
async fn routing_refusals_are_problems() {
    let client = client();
    for path in [
        "/nowhere",
        "/v1",
        "/v1/nowhere/at/all",
        "/v1/ping/",
        "//v1/ping",
    ] {
        let (status, body) = problem(client.get(path).send().await).await;
        assert_eq!(
            (status, &body["code"]),
            (404, &json!("not_found")),
            "{path}"
        );
    }
    let response = client.delete("/v1/things").send().await;
    assert_eq!(response.0.header("allow"), Some("GET, HEAD, POST"));
    assert_eq!(problem(response).await.1["code"], "method_not_allowed");
}

#[tokio::test]
async fn parameters_are_refused_in_our_words() {
    let client = client();
    for query in ["limit=0", "limit=201", "limit=SECRET", "limit=", "limit=-1"] {
        let (status, body) = problem(client.get(format!("/v1/things?{query}")).send().await).await;
        assert_eq!(
            (status, &body["code"]),
            (400, &json!("invalid_parameter")),
            "{query}"
        );
        assert_eq!(body["errors"][0]["pointer"], "/query/limit");
        assert_eq!(body["detail"], "`limit` takes an integer from 1 to 200.");
    }
    let long = "x".repeat(64);
    let (status, body) = problem(client.get(format!("/v1/things/{long}")).send().await).await;
    assert_eq!(
        (status, &body["code"]),
        (404, &json!("not_found")),
        "no name of ours"
    );
    assert_eq!(
        problem(client.get("/v1/things/missing").send().await)
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_nul_is_refused_before_anything_sees_it() {
    let client = client();
    let (status, body) = problem(client.get("/v1/things/a%00b").send().await).await;
    assert_eq!((status, &body["code"]), (404, &json!("not_found")));
    let (status, body) = problem(client.get("/v1/things?limit=1&cursor=%00").send().await).await;
    assert_eq!(
        (status, &body["errors"][0]["pointer"]),
        (400, &json!("/query/cursor"))
    );
}

#[tokio::test]
async fn a_panic_is_one_500_and_the_server_lives_on() {
    let client = client();
    let (status, body) = problem(client.get("/v1/things/panic").send().await).await;
    assert_eq!((status, &body["code"]), (500, &json!("internal")));
    assert!(
        !body.to_string().contains("as the test asked"),
        "internals stay inside"
    );
    assert_eq!(client.get("/v1/things/a").send().await.0.status(), 200);
}

type Case = (fn() -> Result<Response>, u16, &'static str);

#[tokio::test]
async fn errors_of_any_origin_become_problems() {
    let endpoint =
        |f: fn() -> Result<Response>| client_of(wrap(make(move |_| async move { f() }), options()));
    let cases: Vec<Case> = vec![
        (
            || Ok(Response::builder().status(StatusCode::FORBIDDEN).body("no")),
            403,
            "wrong_token_kind",
        ),
        (
            || Ok(Response::builder().status(StatusCode::BAD_GATEWAY).finish()),
            500,
            "internal",
        ),
        (
            || Err(poem::Error::from_status(StatusCode::UNAUTHORIZED)),
            401,
            "unauthenticated",
        ),
        (
            || {
                Err(poem::Error::from_string(
                    "db: SECRET",
                    StatusCode::INTERNAL_SERVER_ERROR,
                ))
            },
            500,
            "internal",
        ),
        (
            || Err(poem::error::ReadBodyError::PayloadTooLarge.into()),
            413,
            "body_too_large",
        ),
        (
            || Err(ApiError::from(Code::SlugTaken).into()),
            409,
            "slug_taken",
        ),
    ];
    for (f, status, code) in cases {
        let (found, body) = problem(endpoint(f).get("/x").send().await).await;
        assert_eq!((found, &body["code"]), (status, &json!(code)));
        assert!(!body.to_string().contains("SECRET"));
    }
    let redirect = endpoint(|| Ok(Response::builder().status(StatusCode::FOUND).finish()));
    assert_eq!(
        redirect.get("/x").send().await.0.status(),
        302,
        "no error, no problem"
    );
    let considered = endpoint(|| {
        let body = Body::from_json(json!({"ready": false})).unwrap();
        let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
        Ok(response.content_type("application/json").body(body))
    });
    let answer = considered.get("/readyz").send().await.0;
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "JSON of its own stays"
    );
}

#[tokio::test]
async fn people_get_problems_as_pages_and_programs_as_json() {
    let app = make(|request: Request| async move {
        match request.uri().path() {
            "/refuses" => Err(ApiError::from(Code::SlugTaken).into()),
            "/panics" => panic!("on purpose"),
            "/gone" => Ok(Response::builder()
                .status(StatusCode::GONE)
                .content_type("text/html; charset=utf-8")
                .body("gone")),
            _ => Err(poem::Error::from(poem::error::NotFoundError)),
        }
    });
    let pages = ProblemPages {
        asks: |request| request.headers().contains_key("x-person"),
        render: |problem, id| {
            Response::builder()
                .status(StatusCode::IM_A_TEAPOT)
                .content_type("text/html; charset=utf-8")
                .body(format!("{} {id}", problem.code))
        },
    };
    let options = StackOptions {
        pages: Some(pages),
        ..options()
    };
    let client = client_of(wrap(app, options));
    for (path, code) in [
        ("/refuses", "slug_taken"),
        ("/panics", "internal"),
        ("/x", "not_found"),
    ] {
        let (_, body) = problem(client.get(path).send().await).await;
        assert_eq!(body["code"], code);
        let page = client.get(path).header("x-person", "1").send().await.0;
        let id = page.header("x-request-id").unwrap().to_owned();
        assert_eq!(page.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(
            page.into_body().into_string().await.unwrap(),
            format!("{code} {id}")
        );
    }
    let own = client.get("/gone").header("x-person", "1").send().await.0;
    assert_eq!(own.status(), StatusCode::GONE, "a page of its own stays");
    assert_eq!(own.into_body().into_string().await.unwrap(), "gone");
}

#[tokio::test]
async fn a_caller_waits_only_so_long_but_the_work_goes_on() {
    let done = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&done);
    let app = make(move |_| {
        let done = Arc::clone(&counter);
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            done.fetch_add(1, Ordering::SeqCst);
        }
    });
    let options = StackOptions {
        time_limit: Duration::from_millis(20),
        ..options()
    };
    let tasks = options.tasks.clone();
    let client = client_of(wrap(app, options));
    let response = client.get("/v1/slow").send().await;
    assert_eq!(response.0.header("retry-after"), Some("5"));
    assert_eq!(problem(response).await.1["code"], "overloaded");
    assert_eq!(done.load(Ordering::SeqCst), 0);
    tasks.close();
    tasks.wait().await;
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_nothing() {
    let (begun, go, done) = (
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
        Arc::new(AtomicUsize::new(0)),
    );
    let (b, g, d) = (Arc::clone(&begun), Arc::clone(&go), Arc::clone(&done));
    let app = make(move |_| {
        let (begun, go, done) = (Arc::clone(&b), Arc::clone(&g), Arc::clone(&d));
        async move {
            begun.notify_one();
            go.notified().await;
            done.fetch_add(1, Ordering::SeqCst);
        }
    });
    let options = options();
    let tasks = options.tasks.clone();
    let stack = Arc::new(wrap(app, options));
    let request = tokio::spawn({
        let stack = Arc::clone(&stack);
        async move {
            stack
                .get_response(Request::builder().header("host", "x").finish())
                .await
        }
    });
    begun.notified().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    go.notify_one();
    tasks.close();
    tasks.wait().await;
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn until_its_body_has_come_a_request_goes_with_its_client() {
    let (begun, go, done) = (
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
        Arc::new(AtomicUsize::new(0)),
    );
    let (b, g, d) = (Arc::clone(&begun), Arc::clone(&go), Arc::clone(&done));
    let app = make(move |mut request: Request| {
        let (begun, go, done) = (Arc::clone(&b), Arc::clone(&g), Arc::clone(&d));
        async move {
            enter(&request).await?;
            let body = request.take_body();
            let read = super::super::body::read(&request, body, 9, Duration::from_secs(9)).await;
            begun.notify_one();
            go.notified().await;
            done.fetch_add(read.map_or(0, |bytes| bytes.len()), Ordering::SeqCst);
            Ok::<_, poem::Error>(())
        }
    });
    let options = one_place();
    let tasks = options.tasks.clone();
    let stack = Arc::new(wrap(app, options));
    let send = || {
        let (sender, receiver) = tokio::sync::oneshot::channel::<&str>();
        let chunk = async { receiver.await.map_err(std::io::Error::other) };
        let body = Body::from_bytes_stream(futures_util::stream::once(chunk));
        let stack = Arc::clone(&stack);
        let call = async move {
            stack
                .get_response(Request::builder().header("host", "x").body(body))
                .await
        };
        (sender, tokio::spawn(call))
    };
    let (_sender, first) = send();
    tokio::task::yield_now().await;
    assert!(tasks.is_empty());
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // While one body comes another request has the place; and what began with a whole body goes on
    // to its end.
    let (_coming, _third) = send();
    tokio::task::yield_now().await;
    let (sender, second) = send();
    tokio::task::yield_now().await;
    sender.send("whole").unwrap();
    begun.notified().await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    go.notify_one();
    tasks.close();
    tasks.wait().await;
    assert_eq!(done.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_full_server_refuses_work_but_answers_for_its_health() {
    let release = Arc::new(Notify::new());
    let waiting = Arc::clone(&release);
    let app = make(move |request: Request| {
        let release = Arc::clone(&waiting);
        async move {
            if request.uri().path() != "/healthz" {
                enter(&request).await?;
            }
            if request.uri().path() == "/v1/wait" {
                release.notified().await;
            }
            Ok::<_, poem::Error>(())
        }
    });
    let stack = Arc::new(wrap(app, one_place()));
    let client = client_of(Arc::clone(&stack));
    let first = tokio::spawn(async move {
        let uri = "/v1/wait".parse().unwrap();
        stack
            .get_response(Request::builder().header("host", "x").uri(uri).finish())
            .await
            .status()
    });
    tokio::task::yield_now().await;
    let response = client.get("/v1/other").send().await;
    assert_eq!(response.0.header("retry-after"), Some("1"));
    assert_eq!(problem(response).await.1["code"], "share_exceeded");
    assert_eq!(client.get("/healthz").send().await.0.status(), 200);
    release.notify_one();
    assert_eq!(first.await.unwrap(), 200);
    assert_eq!(
        client.get("/v1/other").send().await.0.status(),
        200,
        "the place is free again"
    );
}

#[tokio::test]
async fn a_request_names_one_host() {
    let stack = wrap(sample::service(), options());
    let of = async |hosts: &[&str], version| {
        let mut request = Request::builder().version(version);
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.uri_str("/v1/ping").finish();
        stack.get_response(request).await
    };
    let (old, new) = (poem::http::Version::HTTP_10, poem::http::Version::HTTP_11);
    for hosts in [&[][..], &["x", "x"]] {
        let refused = of(hosts, new).await;
        assert_eq!(refused.status(), 400);
        assert_eq!(refused.content_type(), Some(error::PROBLEM_JSON));
        let body: Value = refused.into_body().into_json().await.unwrap();
        assert_eq!(body["code"], "invalid_parameter");
        assert_eq!(body["errors"][0]["pointer"], "/header/Host");
    }
    assert_eq!(of(&["x", "x"], old).await.status(), 400);
    assert_eq!(of(&[], old).await.status(), 200);
    assert_eq!(of(&["x"], new).await.status(), 200);
}

#[tokio::test]
async fn a_large_answer_counts_until_it_is_read() {
    let length = LARGE_ANSWER;
    let app = make(move |request: Request| async move {
        enter(&request).await?;
        Ok::<_, poem::Error>("x".repeat(length))
    });
    let bounds = Bounds {
        total: 3 * length / 2,
        per_owner: 3 * length / 2,
    };
    let options = StackOptions {
        shares: Arc::new(Shares::new(bounds, bounds, Duration::from_millis(20))),
        ..options()
    };
    let client = client_of(wrap(app, options));
    let unread = client.get("/v1/x").send().await.0;
    assert_eq!(unread.status(), 200);
    let refused = client.get("/v1/x").send().await;
    assert_eq!(problem(refused).await.1["code"], "share_exceeded");
    let changed = client.post("/v1/x").send().await;
    let told = problem(changed).await.1["detail"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(told.starts_with("The change was made"), "{told}");
    let text = unread.into_body().into_vec().await.unwrap();
    assert_eq!(text.len(), length);
    drop(text);
    assert_eq!(client.get("/v1/x").send().await.0.status(), 200);
}

#[tokio::test]
async fn what_is_left_of_the_allowance_is_told() {
    let limits = Arc::new(RateLimits::new(RateSettings {
        publisher_per_second: 1,
        ..RateSettings::default()
    }));
    let app = make(move |request: Request| {
        let limits = Arc::clone(&limits);
        async move {
            let context = RequestContext::of(&request)?;
            let id = uuid::Uuid::from_u128(1);
            context.admit(limits.check_publisher(id))?;
            Ok::<_, poem::Error>(())
        }
    });
    let client = client_of(wrap(app, options()));
    let answer = client.get("/v1/x").send().await.0;
    assert_eq!(
        answer.header("ratelimit-policy"),
        Some("\"publisher\";q=2;w=2")
    );
    assert_eq!(answer.header("ratelimit"), Some("\"publisher\";r=1;t=1"));
    client.get("/v1/x").send().await;
    let refused = client.get("/v1/x").send().await;
    assert_eq!(refused.0.status(), 429);
    assert_eq!(refused.0.header("ratelimit"), Some("\"publisher\";r=0;t=1"));
    assert_eq!(refused.0.header("retry-after"), Some("1"));
    assert_eq!(problem(refused).await.1["code"], "rate_limited");
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing() {
    use tokio::io::AsyncWriteExt as _;

    let (begun, go, done) = (
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
        Arc::new(Notify::new()),
    );
    let (b, g, d) = (Arc::clone(&begun), Arc::clone(&go), Arc::clone(&done));
    let app = make(move |_| {
        let (begun, go, done) = (Arc::clone(&b), Arc::clone(&g), Arc::clone(&d));
        async move {
            begun.notify_one();
            go.notified().await;
            done.notify_one();
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let limits = super::super::ConnectionLimits::default();
    let server = tokio::spawn(super::super::serve(
        listener,
        wrap(app, options()),
        limits,
        shutdown.clone(),
    ));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    begun.notified().await;
    drop(client);
    shutdown.cancel();
    server.await.unwrap().unwrap();
    go.notify_one();
    done.notified().await;
}
