//! `«»` marks what must be hidden.

use super::*;

fn redactor() -> Redactor {
    Redactor::new([7; 32], vec!["MODE".into(), "token-count".into()])
}

/// `«»` around a part says that it must be hidden; everything else must stay.
fn check(marked: &str, run: impl Fn(&str) -> String) {
    let plain = marked.replace(['«', '»'], "");
    let mut expected = String::new();
    for (position, part) in marked.split(['«', '»']).enumerate() {
        if position % 2 == 0 {
            expected.push_str(part);
        } else {
            expected.push_str(&redactor().mark(part));
        }
    }
    assert_eq!(run(&plain), expected);
}

#[test]
fn arguments() {
    let run = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        redactor().arguments(&words).join(" ")
    };
    check("app --password «hunter2» --port 80", run);
    check("app --db-password=«hunter2»", run);
    check("app --dbPassword=«hunter2»", run);
    check("app --password-file /etc/secret --verbose", run);
    check("app --author someone --passthrough yes", run);
    check("app --token-count=5", run);
    check("mysqldump -u root -p«hunter2» db", run);
    check("curl -u «me:hunter2» https://x/", run);
    check("curl https://me:«hunter2»@host/path?x=1", run);
    check("redis-cli -a «hunter2» ping", run);
    check("run «ghp_abcdefghijklmnopqrstuvwxyz0123456789» now", run);
    check("app --key «A1b2C3d4E5f6» --pin «1234» --port 80", run);
    check("app --pin=«0815» --key=/etc/ssl/app.key", run);
    check("sort --key 2 --key name --key=2,3 /etc/passwd", run);
    check("app --hmac-key «hunter2» --signing-key «hunter3»", run);
    check("run --key=«wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY»", run);
    check("/usr/lib/jvm/java-17-openjdk-amd64/bin/java -Xmx2G -jar /opt/App-1.2.3.jar", run);
    check("/usr/sbin/nginx -g daemon on; master_process on;", run);
    check("dockerd --host=unix:///var/run/docker.sock", run);
}

#[test]
fn scripts_as_one_word_are_read_too() {
    let words = vec!["sh".to_owned(), "-c".to_owned(), "export TOKEN=hunter2\nexec app".to_owned()];
    let redacted = redactor().arguments(&words);
    assert!(!redacted.join(" ").contains("hunter2"), "{redacted:?}");
    assert!(redacted.join(" ").contains("exec app"));
}

#[test]
fn environment() {
    let redactor = redactor();
    assert_eq!(redactor.environment("PATH", "/bin"), "/bin");
    assert_eq!(redactor.environment("MODE", "fast"), "fast");
    assert_eq!(redactor.environment("ANYTHING", "x"), redactor.mark("x"));
    assert_ne!(redactor.mark("x"), redactor.mark("y"));
    assert_ne!(redactor.mark("x"), Redactor::new([8; 32], Vec::new()).mark("x"));
    let token = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
    assert_eq!(redactor.environment("PATH", token), redactor.mark(token));
    assert_eq!(redactor.environment("PORT", "8080"), redactor.mark("8080"));
    for name in ["PASSWORD", "UNLOCK_PIN", "API_KEY", "Auth"] {
        assert_eq!(redactor.environment(name, "8080"), redactor.mark("8080"), "{name}");
    }
}

#[test]
fn environments_of_units() {
    for marked in [
        "Environment=DSN=«hunter2»\n",
        " Environment = DSN=«hunter2»\nExecStart=/bin/app\n",
        "Environment=A=«one» B=«two» C=3 PATH=/bin\n",
        "Environment=\"A=«one two»\" 'B=«x \"y»' C=\"«one two»\"«D»\n",
        "Environment=A=«one» \\\n  B=«two» \\\n# DSN is elsewhere\n  C=«x»\nUser=app\n",
        "Environment=\"A=«one »\\\n«  two B»\" C=«x»\n",
        "Environment=A=«one\\ two»\n",
        "Environment=A=«one» «two» \"«three four»\"\n",
        "Environment=A=\"«it»\"'«s»' 'B=«x»\n",
        "#Environment=DSN=«hunter2»\nUser=app\n",
        "Environment=DB_PASSWORD=«1234» MODE=fast LOG_LEVEL=info NAME=%i\n",
        "Environment=MODE=postgres://app:«hunter2»@db/app\n",
        "PassEnvironment=A B\nEnvironmentFile=-/etc/default/app\n",
    ] {
        check(marked, |text| redactor().text(text));
    }
}

#[test]
fn files_of_environments() {
    for marked in [
        "FOO=«hunter2»\nPORT=80\n",
        "export FOO=\"«hunter two»\"\n",
        "FOO=«one two»\n  BAR = '«x»'\n",
        "FOO=\"«one»\n«BAR=two»\"\nPORT=80\n",
        "FOO=«one» \\\n  «two»\nPORT=80\n",
        "FOO=\"«a\\\"b»\"'«c»' «d»\n",
        "FOO=«it's»\nPORT=80\n",
        "PORT=80 # that of the web\nFOO=\"«x»\" «# see BAR»\n",
        "# What follows is read by app.service\n#FOO=«hunter2»\n# PORT=80\n",
        "OPTIONS=\"-l --log-level=info\"\nEMPTY=\nQUOTED=\"\"\n",
        "TOKEN=«1»\nMODE=anything at all\n",
        "if [ -x /bin/app ]; then\n",
        "password: «hunter2»\n",
    ] {
        check(marked, |text| redactor().environment_file(text));
    }
    check("FOO=hunter2\n", |text| redactor().text(text));
}

#[test]
fn variables_of_commands() {
    for marked in [
        "docker␣run␣-e␣DSN=«hunter2»␣-e␣PORT=80␣-e␣HOME␣app",
        "docker␣run␣--env␣DSN=«a b»␣--env=DSN=«x»␣--env-file␣/etc/app␣app",
        "/usr/bin/podman␣run␣-ite␣DSN=«x»␣-eDSN=«y»␣-e=DSN=«z»␣app",
        "docker␣run␣--name␣mysql␣-v␣/srv:/var/lib/mysql␣-e␣DSN=«x»␣mysql␣-p«y»",
        "/usr/bin/env␣-i␣-u␣HOME␣DSN=«hunter2»␣LANG=C␣app␣mode=fast",
        "systemd-run␣-E␣DSN=«x»␣--setenv=DSN=«y»␣app",
        "rails␣server␣--env␣production␣-e␣test",
        "docker␣run␣-e␣MODE=fast␣app␣-e␣select 1=1",
    ] {
        check(marked, run_arguments);
    }
    for marked in [
        "ExecStart=/usr/bin/docker run --rm \\\n  -e DSN=«hunter2» \\\n  -e \"A=«b c»\" \\\n  app\n",
        "ExecStart=/usr/bin/docker run -e DSN=\"«x y»\" -e PORT=${PORT} app\nUser=a\n",
        "0 3 * * * root env DSN=«hunter2» backup --all\n",
        "env: production\nDOCKER_OPTS=--env\n",
        "#!/usr/bin/env python3\nx = 1\n",
    ] {
        check(marked, |text| redactor().text(text));
    }
}

#[test]
fn configuration() {
    let run = |text: &str| redactor().text(text);
    check("requirepass «hunter2»\nport 6379\n", run);
    check("password = \"«hunter 2»\"  # comment\n", run);
    check("  db_password: «hunter2»\n  name: x\n", run);
    check("Environment=DB_PASSWORD=«hunter2»\n", run);
    check("Environment=\"API_TOKEN=«hunter2»\"\n", run);
    check("PasswordAuthentication no\nauth required pam_unix.so\n", run);
    check("server_name example.org;\nroot /var/www/html;\n", run);
    check("A=1 DB_PASSWORD=«x» SECRET=«y» exec app --token «z» --port 1\n", run);
    check("# the password is kept elsewhere\n", run);
    check("{\"password\": \"«hunter2»\", \"name\": \"x\"}\n", run);
    check("url = postgres://app:«hunter2»@db/app\n", run);
    let key = "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n";
    assert_eq!(run(&format!("a\n{key}b\n")), format!("a\n{}\nb\n", redactor().mark(key)));
    assert!(!run("-----BEGIN PRIVATE KEY-----\nabc").contains("abc"));
}

fn run_arguments(line: &str) -> String {
    let words: Vec<String> = line.split('␣').map(str::to_owned).collect();
    redactor().arguments(&words).join("␣")
}

#[test]
fn names_are_judged_by_their_endings() {
    use names::{Strength, strength};
    for name in [
        "PGPASSWORD",
        "DBPASSWORD",
        "dbpassword",
        "dbpass",
        "SMTPPASS",
        "userpassword",
        "bindpw",
        "passwords",
        "secrets",
        "tokens",
        "DBPassword",
        "authtoken",
        "proxyPassword2",
    ] {
        assert_eq!(strength(name), Strength::Strong, "{name}");
    }
    for name in [
        "author",
        "passthrough",
        "bypass",
        "compass",
        "passive",
        "PasswordAuthentication",
        "token_count",
        "password-file",
        "SecretName",
        "max_tokens",
        "PassEnvironment",
        "NOPASSWD",
        "PASS_MAX_DAYS",
        "LoadCredential",
        "tokenizer",
        "password-stdin",
    ] {
        assert_eq!(strength(name), Strength::None, "{name}");
    }
}

#[test]
fn more_arguments() {
    for marked in [
        "app␣--dbpass=«hunter2»",
        "app␣--userpassword␣«x»",
        "app␣Pass:«x»",
        "app␣--password:«x»",
        "app␣/password:«x»",
        "app␣{\"password\":\"«x»\"}",
        "curl␣--user=«me:x»␣https://h/",
        "timeout␣5␣curl␣-u␣«me:x»",
        "ldapsearch␣-x␣-w␣«x»",
        "curl␣--header=Authorization:«x»",
        "curl␣-b␣«session=x»",
        "curl␣-b␣cookies.txt",
        "openssl␣rsa␣-passin␣pass:«x»",
        "app␣--password␣«--x»",
        "app␣https://h/?a=1&token=«x»",
        "app␣jdbc:mysql://h/db?user=u&password=«x»",
        "app␣Server=h;Uid=u;Pwd=«x»;",
        "git␣clone␣https://«ghp_abcdefghijklmnopqrstuvwxyz0123456789»@github.com/o/r",
        "sh␣-c␣mysql -uroot -p«x»",
        "sh␣-c␣curl -u «me:x» https://h/",
        "vllm␣serve␣--max-tokens␣4096␣--max-num-batched-tokens=8192",
        "docker␣run␣-p␣80:80␣--init␣app",
        "app␣-H␣--passphrase␣«x»",
        "app␣-pw␣«--x_credentials»␣«x»",
        "smbclient␣-U␣--password␣«x»",
    ] {
        check(marked, run_arguments);
    }
}

#[test]
fn more_text() {
    for marked in [
        "PGPASSWORD=«x»\n",
        "passwords: «x»\n",
        "secrets: [«x,y»]\n",
        "tokens: {«a: x»}\n",
        "url: https://h/?a=1&token=«x»\n",
        "dsn = jdbc:mysql://h/db?user=u&password=«x»\n",
        "conn: Server=h;Uid=u;Pwd=«x»;\n",
        "hook: https://hooks.slack.com/services/«T0/B0/xxxx»\n",
        "0 3 * * * root mysqldump -p«x» db\n",
        "ExecStart=/usr/bin/curl -u «me:x» https://h/\n",
        "redis-cli -a «x» ping\n",
        "curl -H \"Authorization: «Bearer x»\" https://h/\n",
        "sshpass -p «x» ssh h\n",
        "  proxy_set_header Authorization \"«Basic x»\";\n",
        "<password>«x»</password>\n",
        "<property name=\"password\" value=\"«x»\"/>\n",
        "define('DB_PASSWORD', '«x»');\n",
        "key \"k\" { algorithm hmac-md5; secret \"«x»\"; };\n",
        "create user a identified by '«x»';\n",
        "snmp-server community «x» RO\n",
        "auth: «hunter2»\n",
        "auth: basic\nauth: required\n",
        "password:\n  «x»\nport: 1\n",
        "password: |\n  «x»\n  «y»\nport: 1\n",
        "passwords:\n- «x»\n- «y»\nport: 1\n",
        "{\n\"password\":\n\"«x»\",\n\"port\": 1}\n",
        "{\"token\":[\"«x»\"],\"port\":1}\n",
        "secret = \"\"\"\n«x»\n\"\"\"\nport = 1\n",
        "api_secret=\"«x»\n«y»\" token=«z» port=1\n",
        "app --password \\\n  «x» --token «y» z\n",
        "secrets: [«a,»\n«b»\n], token: «x»\n",
        "pw= \"\n«{»\"a_password\": \"«x»\"}\n",
        "app --password \\\n  «x» \\\n  --port 1\n",
        "- name: DB_PASSWORD\n  value: «x»\n- name: PORT\n  value: 1\n",
        "bob:«$apr1$abcdefgh$0123456789abcdefghij»\n",
        "bob:«$2y$05$0123456789abcdefghijkl»\n",
        "bob:«{SHA}0DPiKuNIrrVmD8IUCuw1hQxNqZc=»\n",
        "db.example:5432:app:bob:«x»\n",
    ] {
        check(marked, |text| redactor().text(text));
    }
}

#[test]
fn ordinary_files_stay() {
    for text in [
        "user www-data;\nhttp {\n  auth_basic \"Restricted\";\n  auth_basic_user_file /etc/nginx/.htpasswd;\n  location / {\n    proxy_pass http://backend;\n    proxy_set_header Authorization $http_authorization;\n    fastcgi_pass unix:/run/php.sock;\n  }\n}\n",
        "# PasswordAuthentication.  Depending on your PAM configuration,\n#PermitRootLogin prohibit-password\nPermitEmptyPasswords no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM yes\n",
        "auth required pam_unix.so nullok\npassword [success=1 default=ignore] pam_unix.so obscure use_authtok try_first_pass yescrypt\npassword requisite pam_deny.so\n@include common-password\n",
        "SHELL=/bin/sh\nPATH=/usr/sbin:/usr/bin\n# m h dom mon dow user command\n09,39 * * * * root [ -x /usr/lib/php/sessionclean ] && if [ ! -d /run/systemd/system ]; then /usr/lib/php/sessionclean; fi\n",
        "[Unit]\nAfter=network.target systemd-ask-password-wall.service\n[Service]\nPIDFile=/run/nginx.pid\nPassEnvironment=A B\nExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'\n",
        "/var/log/nginx/*.log {\n\tdaily\n\trotate 14\n\tcreate 0640 www-data adm\n\tpostrotate\n\t\tinvoke-rc.d nginx rotate >/dev/null 2>&1\n\tendscript\n}\n",
        "# Options to pass to sshd\nSSHD_OPTS=\nGRUB_CMDLINE_LINUX=\"quiet splash\"\nEXTRA_OPTS=\"-L 15\"\n",
        "passwd:         files systemd\ngroup:          files systemd\nhosts: files dns\n",
        "%sudo ALL=(ALL:ALL) NOPASSWD: ALL\nPASS_MAX_DAYS 99999\nPASS_WARN_AGE 7\n",
    ] {
        assert_eq!(redactor().text(text), text);
    }
}

#[test]
fn work_is_linear() {
    // A quarter of the largest file that is kept.
    for part in [
        "password ",
        "password=",
        "a",
        "\"",
        "'",
        "mysql '",
        "://",
        "a://b@",
        "[",
        "password: [",
        "\\",
        "token \"",
        "sh -c 'x ",
        "<password",
        "identified by ",
        "curl -u \" ",
        "{\"password\":",
        "Environment=A=x ",
        "docker run -e A=x ",
        "env A=\"x ",
        "A=\"\" ",
    ] {
        let text = part.repeat((1 << 18) / part.len());
        for is_environment in [false, true] {
            let _before = work::spent();
            let _once = lines::pass(&redactor(), &text, is_environment);
            let spent = work::spent();
            assert!(spent < 32 << 18, "{part:?}: {spent}");
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_stable(text in "(?s).{0,200}") {
        let once = redactor().text(&text);
        proptest::prop_assert_eq!(redactor().text(&once), once);
    }

    #[test]
    fn telling_text_is_stable(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "password", "token", "auth", "=", ":", " ", "\n", "\"", "'", "[", "]", "{", "}", "x",
            "\\", "- ", "  ", "mysql ", "-p", "curl -u ", "://", "@", "|", "<", ">", ",", ";", "\"\"\"",
            "redacted:0123456789abcdef", "$6$abcdefghij", "value", "name: ",
        ]), 0..24),
    ) {
        let once = redactor().text(&parts.concat());
        proptest::prop_assert_eq!(redactor().text(&once), once);
    }

    #[test]
    fn variables_are_stable(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "Environment=", "A=", "B_TOKEN=", "MODE=", "x", " ", "\n", "\"", "'", "\\", "\\\n", "#", ";",
            "80", "=", "export ", "docker run ", "-e ", "--env ", "env ", "password", ": ", "://", "@",
            "redacted:0123456789abcdef", "/usr/bin",
        ]), 0..24),
    ) {
        let text = parts.concat();
        let once = redactor().text(&text);
        proptest::prop_assert_eq!(redactor().text(&once), once);
        let once = redactor().environment_file(&text);
        proptest::prop_assert_eq!(redactor().environment_file(&once), once);
    }

    #[test]
    fn a_variable_never_survives(
        name in "[A-Z][A-Z_]{0,8}",
        before in "[A-Za-z0-9 =\"'\\\\\n#]{0,12}",
        value in "[a-z][!#-&(-\\[\\]-~]{6,20}[A-Z]",
    ) {
        proptest::prop_assume!(!LEGIBLE_ENVIRONMENT.contains(&name.as_str()) && name != "MODE");
        let unit = redactor().text(&format!("{before}\nEnvironment={name}={value}\n"));
        proptest::prop_assert!(!unit.contains(&value), "{}", unit);
        let file = redactor().environment_file(&format!("{before}\n{name}={value}\n"));
        proptest::prop_assert!(!file.contains(&value), "{}", file);
        let words = ["docker", "run", "-e"].map(str::to_owned);
        let words: Vec<String> = words.into_iter().chain([format!("{name}={value}")]).collect();
        let shown = redactor().arguments(&words).join(" ");
        proptest::prop_assert!(!shown.contains(&value), "{}", shown);
    }

    #[test]
    fn a_named_value_never_survives(
        prefix in "[A-Z]{0,5}",
        name in proptest::sample::select(vec!["PASSWORD", "_PASSWD", "_TOKEN", "SECRET", "_API_KEY", "PASS"]),
        value in "[A-Za-z0-9][!-~]{6,20}[A-Za-z0-9]",
    ) {
        let name = format!("{prefix}{name}");
        proptest::prop_assume!(!["BY", "COM", "NO"].iter().any(|word| prefix.ends_with(word)));
        let hidden = redactor().text(&format!("{name}={value}\n"));
        proptest::prop_assert!(!hidden.contains(&value), "{}", hidden);
    }
}
