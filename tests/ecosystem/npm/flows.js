// The flows of the documentation of the npm package etcd3 against one server, a line per result.
// Usage: node flows.js PORT
'use strict';

const { Etcd3 } = require('etcd3');

const REPEATABLE_READS = 2; // isolation of a transaction; the package does not export its enum

const hosts = `http://127.0.0.1:${process.argv[2]}`;
const client = new Etcd3({ hosts });
const show = (what, result) => console.log(`${what}: ${JSON.stringify(result)}`);
const text = (value) => (value === null || value === undefined ? null : value.toString());
const once = (emitter, name) => new Promise((resolve) => emitter.once(name, resolve));

async function keysAndValues() {
  await client.put('foo').value('bar');
  show('get', await client.get('foo').string());
  show('get nothing', await client.get('nothing').string());
  await client.put('n').value(7);
  show('number', await client.get('n').number());
  for (const name of ['a', 'b', 'c']) await client.put(`dir/${name}`).value(name);
  show('prefix', await client.getAll().prefix('dir/').strings());
  show('keys, backwards', await client.getAll().prefix('dir/').sort('Key', 'Descend').keys());
  show('limit', await client.getAll().prefix('dir/').limit(2).keys());
  show('count', await client.getAll().prefix('dir/').count());
  const names = client.namespace('dir/');
  show('namespace', await names.getAll().strings());
  show('exists', [await client.get('foo').exists(), await client.get('nothing').exists()]);
  show('delete', (await client.delete().key('foo')).deleted);
  show('delete prefix', (await client.delete().prefix('dir/')).deleted);
  show('revision is a string', typeof (await client.put('r').value('1')).header.revision);
}

async function transactions() {
  const attempt = (wanted) =>
    client
      .if('t', 'Value', '==', wanted)
      .and('t', 'Version', '>', 0)
      .then(client.put('t').value('2'), client.get('t'))
      .else(client.get('t'), client.delete().key('t'))
      .commit();
  await client.put('t').value('1');
  for (const wanted of ['1', '1']) {
    const result = await attempt(wanted);
    show(`txn ${wanted}`, [result.succeeded, result.responses.map((one) => one.response)]);
  }
  await client.put('left').value(10);
  await client.put('right').value(0);
  await client.stm({ isolation: REPEATABLE_READS }).transact(async (tx) => {
    const left = await tx.get('left').number();
    const right = await tx.get('right').number();
    await tx.put('left').value(left - 3);
    await tx.put('right').value(right + 3);
  });
  show('stm', [await client.get('left').number(), await client.get('right').number()]);
}

async function watches() {
  const seen = [];
  const watcher = await client.watch().prefix('w/').create();
  const all = new Promise((resolve) => {
    watcher.on('put', (kv) => seen.push(['put', text(kv.key), text(kv.value), kv.version]));
    watcher.on('delete', (kv) => {
      seen.push(['delete', text(kv.key)]);
      resolve();
    });
  });
  const first = (await client.put('w/a').value('1')).header.revision;
  await client.put('other').value('not watched');
  await client.put('w/b').value('2');
  await client.put('w/a').value('3');
  await client.delete().key('w/a');
  await all;
  await watcher.cancel();
  show('watch', seen);
  const past = await client.watch().key('w/a').startRevision(first).create();
  show('watch of the past', text((await once(past, 'put')).value));
  await past.cancel();
  const only = await client.watch().key('w/b').ignore('put').withPreviousKV().create();
  const gone = once(only, 'data');
  await client.put('w/b').value('4');
  await client.delete().key('w/b');
  const event = (await gone).events[0];
  show('deletes only, with the previous value', [event.type, text(event.prev_kv.value)]);
  await only.cancel();
}

async function leases() {
  const lease = client.lease(30);
  await lease.put('leased').value('1');
  const id = await lease.grant();
  const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  show('lease', [left.grantedTTL, left.keys.map(text)]);
  await lease.keepaliveOnce();
  const all = await client.leaseClient.leaseLeases();
  show('leases', all.leases.length);
  await lease.revoke();
  show('after the revoke', await client.get('leased').string());
  try {
    await client.leaseClient.leaseRevoke({ ID: '12345' });
  } catch (error) {
    show('revoke of nothing', error.constructor.name);
  }
}

async function coordination() {
  const lock = client.lock('mutex').ttl(20);
  await lock.acquire();
  const other = client.lock('mutex');
  try {
    await other.acquire();
  } catch (error) {
    show('held by another', error.constructor.name);
  }
  await lock.release();
  show('with a lock', await client.lock('mutex').do(async () => 'done'));
  const election = client.election('leader', 20);
  const campaign = election.campaign('me');
  await once(campaign, 'elected');
  show('leader', await election.leader());
  const observer = await election.observe();
  const changed = once(observer, 'change');
  await campaign.proclaim('still me');
  await changed;
  show('proclaimed', await election.leader());
  await observer.cancel();
  await campaign.resign();
  show('resigned', (await election.leader()) ?? null);
}

async function refused(what, work) {
  try {
    await work();
    show(what, 'allowed');
  } catch (error) {
    show(what, [error.constructor.name, error.message.replace(/^\d+ \w+: /, '')]);
  }
}

async function auth() {
  const root = client.role('root');
  await root.create();
  await client.user('root').create('secret');
  await client.user('root').addRole('root');
  const role = client.role('reader');
  await role.create();
  await role.grant({ permission: 'Read', range: client.range({ prefix: 'pub/' }) });
  await client.user('ann').create('word');
  await client.user('ann').addRole('reader');
  show('permissions', (await role.permissions()).map((one) => [one.permission, text(one.range.start), text(one.range.end)]));
  show('roles of ann', (await client.user('ann').roles()).map((one) => one.name));
  await client.put('pub/x').value('1');
  await client.auth.authEnable();
  await refused('nobody', () => client.get('pub/x').string());
  const ann = new Etcd3({ hosts, auth: { username: 'ann', password: 'word' } });
  show('ann reads', await ann.get('pub/x').string());
  await refused('ann writes', () => ann.put('pub/x').value('2'));
  await refused('ann reads elsewhere', () => ann.get('foo').string());
  const wrong = new Etcd3({ hosts, auth: { username: 'ann', password: 'wrong' } });
  await refused('a wrong password', () => wrong.get('pub/x').string());
  const admin = new Etcd3({ hosts, auth: { username: 'root', password: 'secret' } });
  show('users', (await admin.getUsers()).map((one) => one.name));
  show('roles', (await admin.getRoles()).map((one) => one.name));
  await admin.user('ann').removeRole('reader');
  await refused('ann without a role', () => ann.get('pub/x').string());
  await admin.auth.authDisable();
  show('auth is off', await client.get('pub/x').string());
  for (const one of [ann, wrong, admin]) one.close();
}

(async () => {
  for (const flow of [keysAndValues, transactions, watches, leases, coordination, auth]) {
    console.log(`-- ${flow.name}`);
    await flow();
  }
  client.close();
  console.log('-- end');
})().catch((error) => {
  console.log(`failed: ${error.stack}`);
  process.exit(1);
});
