// The story of the README, by the JavaScript SDK.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create({ envs: { COLOUR: 'green' } })
const server = await sandbox.commands.run('python3 -m http.server 8000', { background: true, timeoutMs: 0 })
await sandbox.files.write('/home/user/note.txt', 'hello')
// A pause stops the server wherever it is. Only one that has answered before must answer at once after it.
const get = 'curl -s -o /dev/null -w "%{http_code}" http://localhost:8000/note.txt'
assert.equal((await sandbox.commands.run(`${get} --retry 20 --retry-connrefused --retry-delay 1`)).stdout, '200')
assert.equal(await sandbox.pause(), true)
assert.equal(await sandbox.pause(), false)
assert.equal(await sandbox.isRunning(), false)

const same = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 })
assert.equal(await same.files.read('/home/user/note.txt'), 'hello')
assert.deepEqual((await same.commands.list()).map((process) => process.pid), [server.pid])
const page = await same.commands.run(get)
assert.equal(page.stdout, '200')
assert.equal((await same.commands.run('echo $COLOUR')).stdout, 'green\n')

assert.equal(await same.kill(), true)
assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
await assert.rejects(() => Sandbox.connect(sandbox.sandboxId), { name: 'SandboxNotFoundError' })
