//! Receivers that say for how long they keep a connection that nobody uses.

use tokio::{io::AsyncReadExt as _, time::timeout};

use super::*;

/// Answers every request of every connection with this head after `delay`; tells of each connection
/// how many requests it had, and how long it was then unused when the client closed it.
struct Keeping {
    url: String,
    closed: tokio::sync::mpsc::UnboundedReceiver<(usize, Duration)>,
}

async fn keeping(authority: &Authority, head: &'static str, delay: Duration) -> Keeping {
    let (acceptor, listener, port) = listen(authority.server_config("hooks.example.test")).await;
    let (tell, closed) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(socket).await.unwrap();
                let mut requests = 0;
                loop {
                    let since = std::time::Instant::now();
                    let mut buffer = [0; 4096];
                    if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                        let _ = tell.send((requests, since.elapsed()));
                        return;
                    }
                    requests += 1;
                    let answer = format!("HTTP/1.1 200 OK\r\n{head}content-length: 2\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    tokio::time::sleep(delay).await;
                    stream.write_all(b"ok").await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    Keeping {
        url: format!("https://hooks.example.test:{port}/x"),
        closed,
    }
}

async fn send(client: &Client, url: &str) {
    let answer = client.send(Request::notice(url, b"{}".to_vec())).await;
    assert_eq!(answer.unwrap().status, 200);
}

#[tokio::test]
async fn a_connection_ends_before_its_peer_closes_it() {
    let authority = Authority::new();
    let client = authority.client();
    let head = "Keep-Alive: max=9, Timeout = 3\r\n";
    let mut peer = keeping(&authority, head, Duration::ZERO).await;
    send(&client, &peer.url).await;
    // It is used again meanwhile, and the time begins anew.
    tokio::time::sleep(Duration::from_secs(1)).await;
    send(&client, &peer.url).await;
    let closed = timeout(Duration::from_secs(10), peer.closed.recv()).await;
    let (requests, unused) = closed.expect("it is kept on").unwrap();
    assert_eq!(requests, 2);
    assert!(unused > Duration::from_millis(1500), "{unused:?}");
    assert!(unused < Duration::from_secs(3), "{unused:?}");
    send(&client, &peer.url).await;
}

#[tokio::test]
async fn an_answer_that_takes_longer_is_read_to_its_end() {
    let authority = Authority::new();
    let client = authority.client();
    let delay = Duration::from_secs(2);
    let mut peer = keeping(&authority, "keep-alive: timeout=1\r\n", delay).await;
    send(&client, &peer.url).await;
    let (requests, unused) = peer.closed.recv().await.unwrap();
    assert_eq!(requests, 1);
    assert!(unused < Duration::from_secs(1), "{unused:?}");
}

#[tokio::test]
async fn without_a_word_a_connection_is_kept() {
    let authority = Authority::new();
    let client = authority.client();
    for head in [
        "",
        "keep-alive: timeout=soon\r\n",
        "keep-alive: timeout=60\r\n",
    ] {
        let mut peer = keeping(&authority, head, Duration::ZERO).await;
        send(&client, &peer.url).await;
        let closed = timeout(Duration::from_secs(2), peer.closed.recv()).await;
        assert!(closed.is_err(), "{head:?}");
        send(&client, &peer.url).await;
    }
}
