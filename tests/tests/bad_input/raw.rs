//! What no HTTP library would send.

use tests::{World, on_both_stores, tools};

on_both_stores!(broken_http_is_refused_and_the_server_lives_on);

async fn broken_http_is_refused_and_the_server_lives_on(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let url = server.url();
    let close = "connection: close\r\n\r\n";
    for (what, request) in [
        ("no HTTP", "hello\r\n\r\n".to_owned()),
        ("no host", format!("GET /v1/runs HTTP/1.1\r\n{close}")),
        (
            "two lengths",
            format!(
                "POST /v1/runs/claim HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n{close}{{}}"
            ),
        ),
        (
            "a length and chunks",
            format!(
                "POST /v1/runs/claim HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n{close}0\r\n\r\n"
            ),
        ),
        (
            "a negative length",
            format!("POST /v1/runs/claim HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n{close}"),
        ),
        (
            "a header of 100 kB",
            format!(
                "GET /v1/runs HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n{close}",
                "a".repeat(100_000)
            ),
        ),
        (
            "two credentials",
            format!(
                "GET /v1/publishers/me HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {0}\r\nauthorization: Bearer {0}\r\n{close}",
                publisher.admin.token()
            ),
        ),
        (
            "a space in the path",
            format!("GET /v1/runs /x HTTP/1.1\r\nhost: x\r\n{close}"),
        ),
        (
            "NUL in a header",
            format!("GET /v1/runs HTTP/1.1\r\nhost: x\r\nx-a: a\0b\r\n{close}"),
        ),
    ] {
        let answer = tools::raw(&url, request.as_bytes()).await;
        let refused = answer.is_empty()
            || answer.starts_with("HTTP/1.1 4")
            || answer.starts_with("HTTP/1.0 4");
        assert!(refused, "{what}: {answer}");
    }
    publisher.admin.get("/v1/publishers/me").expect(200).await;
    // A method of nobody's, and one that every resource has.
    let answer = publisher.admin.call("PROPFIND", "/v1/runs").answer().await;
    assert!(matches!(answer.status, 404 | 405 | 501), "{answer}");
    let head = publisher.admin.call("HEAD", "/v1/runs").expect(200).await;
    assert!(head.body.is_empty());
}
