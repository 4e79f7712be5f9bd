//! What a server can do wrong, over real TLS: each is an error that says what, and in time.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use vsphere::{Error, Fingerprint, PAGE, Password, Requests, Session, Settings, Trust};

const CONTENT: &str = r#"<RetrieveServiceContentResponse xmlns="urn:vim25"><returnval><rootFolder type="Folder">group-d1</rootFolder><propertyCollector type="PropertyCollector">pc</propertyCollector><viewManager type="ViewManager">vm</viewManager><about><fullName>a test</fullName><apiType>HostAgent</apiType></about><sessionManager type="SessionManager">sm</sessionManager></returnval></RetrieveServiceContentResponse>"#;
const VIEW: &str = r#"<CreateContainerViewResponse xmlns="urn:vim25"><returnval type="ContainerView">v1</returnval></CreateContainerViewResponse>"#;

/// What is answered to a call: status and body, or raw bytes after which the connection ends.
#[derive(Clone)]
enum Answer {
    Body(u16, String),
    Raw(Vec<u8>),
    Nothing,
}

fn body(inner: &str) -> Answer {
    Answer::Body(200, envelope(inner))
}

fn fault(kind: &str) -> Answer {
    let inner = format!(
        r#"<s:Fault><faultcode>ServerFaultCode</faultcode><faultstring>no</faultstring><detail><{kind}Fault xmlns:xsi="x" xsi:type="{kind}"/></detail></s:Fault>"#
    );
    Answer::Body(500, envelope(&inner))
}

fn envelope(inner: &str) -> String {
    format!(r#"<s:Envelope xmlns:s="e"><s:Body>{inner}</s:Body></s:Envelope>"#)
}

/// Serves until the test ends; the settings that reach it.
async fn server(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Settings {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], rustls_pki(&key.signing_key.serialize_der()))
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    #[expect(clippy::disallowed_methods, reason = "a server of a test ends with its runtime")]
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Some(call) = request(&mut stream).await {
                    let bytes = match answer(&call) {
                        Answer::Body(status, body) => format!(
                            "HTTP/1.1 {status} X\r\nSet-Cookie: vmware_soap_session=\"s\"; Path=/\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        )
                        .into_bytes(),
                        Answer::Raw(bytes) => {
                            stream.write_all(&bytes).await.ok();
                            stream.shutdown().await.ok();
                            return;
                        }
                        Answer::Nothing => std::future::pending().await,
                    };
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Settings {
        host: "127.0.0.1".to_owned(),
        port,
        username: "user".to_owned(),
        password: Password("hidden-word".to_owned()),
        trust: Trust::Fingerprint(Fingerprint::of(&certificate)),
        timeout: Duration::from_secs(2),
        requests: Requests::default(),
    }
}

fn rustls_pki(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(der.to_vec()).unwrap()
}

/// The name of the call; nothing when the client has gone.
async fn request(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            let (_, call) = body.split_once("<e:Body><")?;
            return call.split([' ', '>']).next().map(str::to_owned);
        }
    }
}

/// What all servers do well, until a call that this one answers otherwise.
fn but(call: &'static str, answer: Answer) -> impl Fn(&str) -> Answer {
    move |asked| match asked {
        asked if asked == call => answer.clone(),
        "RetrieveServiceContent" => body(CONTENT),
        "CreateContainerView" => body(VIEW),
        "RetrievePropertiesEx" => body("<RetrievePropertiesExResponse/>"),
        other => body(&format!("<{other}Response/>")),
    }
}

async fn check(call: &'static str, answer: Answer, expected: &str) -> Error {
    let settings = server(but(call, answer)).await;
    let begin = Instant::now();
    let done = async {
        let mut session = Session::open(&settings, PAGE).await?;
        session.list().await
    };
    let error = done.await.unwrap_err();
    let shown = format!("{error:?} {}", model::with_causes(&error));
    assert!(shown.contains(expected), "{shown}");
    assert!(!shown.contains("hidden-word"), "{shown}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{call}");
    error
}

#[tokio::test]
async fn a_good_server_is_listed() {
    let settings = server(but("", Answer::Nothing)).await;
    let mut session = Session::open(&settings, PAGE).await.unwrap();
    assert_eq!(session.about().name, "a test");
    assert!(session.list().await.unwrap().machines.is_empty());
    session.close().await.unwrap();
    assert_eq!(settings.requests.count(), 5);
}

#[tokio::test]
async fn answers_that_are_none() {
    let half = b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n<s:Envelope>".to_vec();
    check("RetrievePropertiesEx", Answer::Raw(half), "broke off during RetrievePropertiesEx").await;
    let announced = b"HTTP/1.1 200 X\r\nContent-Length: 52428800\r\n\r\n<".to_vec();
    check("RetrievePropertiesEx", Answer::Raw(announced), "more than 32 MiB").await;
    let mut long = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..50 {
        long.extend_from_slice(b"100000\r\n");
        long.resize(long.len() + 0x10_0000, b' ');
        long.extend_from_slice(b"\r\n");
    }
    check("RetrievePropertiesEx", Answer::Raw(long), "more than 32 MiB").await;
    check("RetrievePropertiesEx", Answer::Nothing, "did not answer RetrievePropertiesEx within 2")
        .await;
    let status = Answer::Body(404, String::new());
    check("RetrieveServiceContent", status, "HTTP status 404").await;
    check("RetrieveServiceContent", body("<x></y>"), "is not XML").await;
    check("RetrieveServiceContent", body("<x/>"), "without rootFolder").await;
    let bomb = r#"<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>"#.to_owned();
    check("RetrieveServiceContent", Answer::Body(200, bomb), "which is refused").await;
    check("CreateContainerView", body("<x/>"), "without an id").await;
}

#[tokio::test]
async fn refusals() {
    let denied = check("Login", fault("InvalidLogin"), "refused the user name or password").await;
    assert!(denied.needs_somebody());
    let over = check("RetrievePropertiesEx", fault("NotAuthenticated"), "NotAuthenticated").await;
    assert!(over.is_session_over() && !over.needs_somebody());
    check(
        "CreateContainerView",
        fault("NoPermission"),
        "refused CreateContainerView: no (NoPermission)",
    )
    .await;
}

#[tokio::test]
async fn who_it_is_not() {
    let good = server(but("", Answer::Nothing)).await;
    for trust in [Trust::System, Trust::Fingerprint(Fingerprint::of(b"another"))] {
        let error = Session::open(&Settings { trust, ..good.clone() }, PAGE).await.unwrap_err();
        assert!(matches!(&error, Error::Tls { .. }), "{error:?}");
        assert!(error.needs_somebody());
    }
    assert!(Session::open(&Settings { trust: Trust::Anybody, ..good.clone() }, PAGE).await.is_ok());
    let gone = Settings { port: 1, ..good };
    assert!(matches!(Session::open(&gone, PAGE).await, Err(Error::Connect { .. })));
}
