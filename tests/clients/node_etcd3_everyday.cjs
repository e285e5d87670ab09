// Everyday use of etcd3 of npm. Arguments: services, endpoints.
//
// Prints what it sees, a JSON list a line; waits for a line on stdin where the active is to be
// killed. It moves from endpoint to endpoint, and resumes its watches, by itself.
'use strict';
const readline = require('readline');
const { Etcd3, isRecoverableError } = require('etcd3');
const { circuitBreaker, handleWhen, ConstantBackoff, ConsecutiveBreaker } = require('cockatiel');

const services = process.argv[2].split(',');
const hosts = process.argv[3].split(',').map((each) => `http://${each}`);
const AT = 'node-etcd3/';
const TRIES = 200;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const say = (...facts) => console.log(JSON.stringify(facts));
/** By default a node that has refused thrice, as standbys do, is left alone for 5 s, and watches
 * pause for up to 30 s. */
const faultHandling = {
  host: () =>
    circuitBreaker(handleWhen(isRecoverableError), { halfOpenAfter: 250, breaker: new ConsecutiveBreaker(3) }),
  watchBackoff: new ConstantBackoff(100),
};
const client = new Etcd3({ hosts, faultHandling });
const lines = readline.createInterface({ input: process.stdin });

/** For what may be repeated. */
async function surely(call) {
  for (let left = TRIES; ; left--) {
    try {
      return await call();
    } catch (error) {
      if (left === 0) throw error;
      await pause(50);
    }
  }
}

/** A put that may have been applied although it failed is looked for before it is repeated. */
async function put(key, value) {
  for (let left = TRIES; left > 0; left--) {
    try {
      await client.put(AT + key).value(value);
      return;
    } catch {
      await pause(50);
      if ((await surely(() => client.get(AT + key).string())) === value) return;
    }
  }
  throw new Error(`${key} can't be put`);
}

async function keys() {
  await surely(() => client.delete().prefix(AT));
  say('missing', await surely(() => client.get(AT + 'a').string()));
  await client.put(AT + 'a').value('1');
  say('get', await client.get(AT + 'a').string());
  say('prev', (await client.put(AT + 'a').value('2').getPrevious()).value.toString());
  await client.put(AT + 'b').value('of b');
  await client.put(AT + 'c').value('of c');
  say('prefix', await client.getAll().prefix(AT).strings());
  say('names', await client.getAll().prefix(AT).sort('Mod', 'Descend').limit(2).keys());
  say('count', await client.getAll().prefix(AT).count());
  say('number', await client.get(AT + 'a').number());
  const inNamespace = client.namespace(AT);
  say('namespace', await inNamespace.getAll().keys());
  say('delete', (await client.delete().key(AT + 'b').getPrevious()).map((each) => `${each.value}`));
  say('delete again', (await client.delete().key(AT + 'b').exec()).deleted);
}

async function transactions() {
  for (const wanted of ['2', '3']) {
    const done = await client
      .if(AT + 'a', 'Value', '==', wanted)
      .and(AT + 'x', 'Create', '==', 0)
      .then(client.put(AT + 'd').value('done'), client.get(AT + 'a'), client.delete().key(AT + 'c'))
      .else(client.get(AT + 'd'))
      .commit();
    say('txn', done.succeeded, done.responses.length);
  }
  const sum = await client.stm().transact(async (tx) => {
    const before = Number(await tx.get(AT + 'a').string());
    await tx.put(AT + 'a').value(before + 1);
    return before + 1;
  });
  say('stm', sum, await client.get(AT + 'a').string());
}

async function refusals() {
  const { header } = await client.put(AT + 'a').value('3');
  await client.kv.compact({ revision: header.revision, physical: true });
  const calls = {
    'empty key': () => client.put('').value(''),
    compacted: () => client.get(AT + 'a').revision(Number(header.revision) - 1).string(),
    future: () => client.get(AT + 'a').revision(Number(header.revision) + 99).string(),
    'too large': () => client.put(AT + 'big').value(Buffer.alloc((1 << 20) * 1.5, 'x')),
  };
  for (const [name, call] of Object.entries(calls)) {
    try {
      say(name, await call());
    } catch (error) {
      say(name, error.constructor.name, error.message.replace(/^.*?: /, ''));
    }
  }
}

async function watches() {
  await put('w', 'first');
  const { kvs } = await surely(() => client.get(AT + 'w').exec());
  // not create(): it resolves a moment after the watcher is there, and has lost its first events
  const watcher = client
    .watch().prefix(AT).startRevision(kvs[0].mod_revision).withPreviousKV().watcher();
  const seen = [];
  const all = new Promise((resolve) => {
    watcher.on('put', (kv) => {
      seen.push(['put', kv.key.toString(), kv.value.toString()]);
      if (kv.value.toString() === 'last') resolve();
    });
    watcher.on('delete', (kv, before) => {
      seen.push(['delete', kv.key.toString(), before.value.toString()]);
    });
  });
  for (let number = 0; number < 20; number++) await put('w', `${number}`);
  say('kill');
  await new Promise((resolve) => lines.once('line', resolve));
  for (let number = 20; number < 40; number++) await put('w', `${number}`);
  await surely(() => client.delete().key(AT + 'w').exec());
  await put('w', 'last');
  await Promise.race([all, pause(60000)]);
  say('watched', seen);
  await watcher.cancel();
}

async function leases() {
  const lease = client.lease(30);
  await lease.put(AT + 'leased').value('while it lives');
  const told = await client.leaseClient.leaseTimeToLive({ ID: await lease.grant(), keys: true });
  say('granted', told.grantedTTL, told.keys.map(String));
  await lease.keepaliveOnce();
  await lease.revoke();
  say('revoked', await client.get(AT + 'leased').string());
}

async function locks() {
  const first = client.lock(AT + 'lock');
  await first.acquire();
  const refused = await client.lock(AT + 'lock').acquire().catch((error) => error.constructor.name);
  await first.release();
  say('lock', refused, await client.lock(AT + 'lock').do(() => 'held'));
}

async function elections() {
  const election = client.election(AT + 'election', 30);
  const campaign = election.campaign('one');
  await new Promise((resolve) => campaign.once('elected', resolve));
  say('leader', await election.leader());
  await campaign.proclaim('still one');
  say('proclaimed', await election.leader());
  await campaign.resign();
  say('resigned', await election.leader());
}

(async () => {
  await keys();
  await transactions();
  await refusals();
  if (services.includes('lease')) {
    await leases();
    await locks();
    await elections();
  }
  await watches();
  lines.close();
  client.close();
  process.exit(0); // closed or not, it goes on dialling the node that was killed
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
