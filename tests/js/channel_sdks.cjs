// The platforms' own SDKs for Node as judges of what we send: an event is signed by hand, must pass the verifier that
// the platform ships, and is posted to the server.
//
//     channel_sdks.cjs FILE      FILE: JSON {"kind", "url", "secrets", "text", "number"}; prints {"status", "body"}
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const https = require('https');
const { EventEmitter } = require('events');

function assert(holds, what) {
  if (!holds) throw new Error(what);
}

async function post(url, body, headers) {
  const answer = await fetch(url, { method: 'POST', body, headers: { 'Content-Type': 'application/json', ...headers } });
  return { status: answer.status, body: await answer.text() };
}

async function feishu({ url, secrets, text, number }) {
  const { EventDispatcher, LoggerLevel } = require('@larksuiteoapi/node-sdk');
  const event = {
    schema: '2.0',
    header: { event_id: `ev${number}`, token: secrets.verify_token, create_time: `${Date.now()}`, event_type: 'im.message.receive_v1', tenant_key: 't', app_id: secrets.app_id },
    event: {
      sender: { sender_id: { open_id: 'ou_1' }, sender_type: 'user', tenant_key: 't' },
      message: { message_id: `om_${number}`, chat_id: 'oc_1', chat_type: 'p2p', message_type: 'text', content: JSON.stringify({ text }) },
    },
  };
  const iv = crypto.randomBytes(16);
  const cipher = crypto.createCipheriv('aes-256-cbc', crypto.createHash('sha256').update(secrets.encryption_key).digest(), iv);
  const sealed = Buffer.concat([iv, cipher.update(JSON.stringify(event)), cipher.final()]).toString('base64');
  const body = JSON.stringify({ encrypt: sealed });
  const time = `${Math.floor(Date.now() / 1000)}`;
  const signature = crypto.createHash('sha256').update(time + 'nonce' + secrets.encryption_key + body).digest('hex');
  const headers = { 'x-lark-request-timestamp': time, 'x-lark-request-nonce': 'nonce', 'x-lark-signature': signature };
  let read;
  const sdk = new EventDispatcher({ encryptKey: secrets.encryption_key, verificationToken: secrets.verify_token, loggerLevel: LoggerLevel.error });
  sdk.register({ 'im.message.receive_v1': (data) => { read = data.message.content; } });
  await sdk.invoke(Object.assign(Object.create({ headers }), { encrypt: sealed }));
  assert(read && JSON.parse(read).text === text, 'the SDK takes the event');
  return post(url, body, headers);
}

async function email_sns({ url, secrets, text, number }) {
  const MessageValidator = require('sns-validator');
  const mail = `From: Ann <ann@mail.example>\r\nTo: bot@mail.example\r\nSubject: A question\r\nMessage-ID: <q${number}@mail.example>\r\n\r\n${text}\r\n`;
  const report = {
    notificationType: 'Received',
    mail: { source: 'ann@mail.example', messageId: `s${number}`, commonHeaders: { messageId: `<q${number}@mail.example>` } },
    receipt: { spfVerdict: { status: 'PASS' }, dkimVerdict: { status: 'PASS' } },
    content: mail,
  };
  const message = {
    Type: 'Notification', MessageId: `m-${number}`, TopicArn: secrets.topic, Subject: 'Amazon SES Email Receipt Notification',
    Message: JSON.stringify(report), Timestamp: new Date().toISOString(), SignatureVersion: '2', SigningCertURL: secrets.certificate_url,
  };
  const names = ['Message', 'MessageId', 'Subject', 'Timestamp', 'TopicArn', 'Type'];
  const signed = names.map((name) => `${name}\n${message[name]}\n`).join('');
  message.Signature = crypto.sign('RSA-SHA256', Buffer.from(signed), fs.readFileSync(secrets.key_file)).toString('base64');
  // The SDK fetches the certificate from Amazon; here it is handed the one that this key belongs to.
  https.get = (_url, done) => {
    const answer = Object.assign(new EventEmitter(), { statusCode: 200 });
    setImmediate(() => { answer.emit('data', fs.readFileSync(secrets.certificate_file)); answer.emit('end'); });
    done(answer);
    return new EventEmitter();
  };
  await new Promise((taken, refused) => new MessageValidator().validate({ ...message }, (error) => (error ? refused(error) : taken())));
  return post(url, JSON.stringify(message), { 'x-amz-sns-message-type': 'Notification', 'Content-Type': 'text/plain; charset=UTF-8' });
}

const { kind, ...given } = JSON.parse(fs.readFileSync(process.argv[2]));
({ feishu, email_sns })[kind](given).then((reply) => console.log(JSON.stringify(reply)));
