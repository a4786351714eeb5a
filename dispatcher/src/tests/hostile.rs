//! Receivers that misbehave, on real sockets: each attempt ends in time, with its class, and
//! nobody else's deliveries are held up.

use std::future::Future;

use super::*;

/// A server that does with each connection what it likes, after it has read the request.
async fn hostile<F, Fut>(behave: F) -> String
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            tokio::spawn(behave(stream));
        }
    });
    url
}

/// Answers these bytes, then the last ones for as long as somebody reads.
async fn endless(head: &'static str, part: Vec<u8>, pause: Duration) -> String {
    hostile(move |mut stream| {
        let part = part.clone();
        async move {
            let mut sent = stream.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(pause).await;
                sent = stream.write_all(&part).await;
            }
        }
    })
    .await
}

async fn answering(answer: String) -> String {
    hostile(move |mut stream| {
        let answer = answer.clone();
        async move {
            // The dispatcher may have seen enough.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// Speaks first, and not TLS.
async fn without_tls() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    url
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const HUGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";

/// Its connections are accepted by the kernel, and by nobody else.
async fn deaf() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let _listener = listener;
        std::future::pending::<()>().await;
    });
    url
}

fn headers(count: usize) -> String {
    (0..count).fold(String::new(), |all, at| all + &format!("x-h{at}: {at}\r\n"))
}

/// Where to send, the status that is recorded, and the class.
async fn receivers() -> Vec<(&'static str, String, Option<i32>, Option<&'static str>)> {
    let second = Duration::from_secs(1);
    let chunk = || b"4\r\nabcd\r\n".to_vec();
    let large = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
    let plain = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
    let many = headers(100);
    let too_many = headers(10_000);
    vec![
        (
            "drips",
            endless(CHUNKED, chunk(), second).await,
            None,
            Some("timeout"),
        ),
        (
            "drips headers",
            endless("HTTP/1.1 200 OK\r\n", b"a: b\r\n".to_vec(), second).await,
            None,
            Some("timeout"),
        ),
        (
            "never ends",
            endless(CHUNKED, large, Duration::ZERO).await,
            Some(200),
            None,
        ),
        (
            "sends 1 GB",
            endless(HUGE, vec![b'x'; 65_536], Duration::ZERO).await,
            Some(200),
            None,
        ),
        (
            "breaks off in the body",
            answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".into()).await,
            None,
            Some("protocol"),
        ),
        (
            "speaks something else",
            answering("220 mail.example ESMTP\r\n".into()).await,
            None,
            Some("protocol"),
        ),
        ("has no TLS", without_tls().await, None, Some("tls")),
        (
            "redirects to this machine",
            answering(format!(
                "HTTP/1.1 302 Found\r\nlocation: {plain}\r\ncontent-length: 0\r\n\r\n"
            ))
            .await,
            Some(302),
            Some("status"),
        ),
        ("never accepts", deaf().await, None, Some("timeout")),
        (
            "sends 100 headers",
            answering(format!("HTTP/1.1 204 No Content\r\n{many}\r\n")).await,
            Some(204),
            None,
        ),
        (
            "sends 10 000 headers",
            answering(format!("HTTP/1.1 204 No Content\r\n{too_many}\r\n")).await,
            None,
            Some("protocol"),
        ),
    ]
}

#[tokio::test]
async fn whatever_a_receiver_does_the_attempt_ends_with_its_class() {
    let world = World::new("1h").await;
    let (dispatcher, stop) = world.start();
    let good = Receiver::start(vec![reply(204)]).await;
    let mut cases = Vec::new();
    for (name, url, status, class) in receivers().await {
        let endpoint = world.endpoint(url, false).await;
        world.event(endpoint).await;
        cases.push((name, endpoint, status, class));
    }
    let prompt = world.endpoint(good.url(), false).await;
    world.event(prompt).await;
    world.until_status(prompt, "succeeded").await;
    for (name, endpoint, status, class) in cases {
        let tried = |all: &[Delivery]| all.iter().all(|one| one.attempts > 0);
        let all = world.until(endpoint, tried).await;
        let (delivery, attempts) = world.scoped.delivery(all[0].id).await.unwrap();
        let [attempt] = attempts.as_slice() else {
            panic!("{name}: {attempts:?}")
        };
        let seen = (attempt.status_code, attempt.error.as_deref());
        assert_eq!(seen, (status, class), "{name}");
        assert!(attempt.latency_ms < 7000, "{name}: {attempt:?}");
        let kept = attempt.response_excerpt.as_ref().map_or(0, String::len);
        assert!(kept <= 1024, "{name} left {kept} bytes");
        let state = if class.is_none() {
            "succeeded"
        } else {
            "pending"
        };
        assert_eq!(delivery.status, state, "{name}");
    }
    end(world, dispatcher, stop).await;
}
